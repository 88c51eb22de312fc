// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"tailscale-nri/engine"
	"tailscale-nri/engine/measure"
	"tailscale-nri/nri-plugin/internal/status"
)

// hostName is the Kubernetes node's name, or the machine's where nobody has said that.
func hostName(cfg Config) string {
	if cfg.NodeName != "" {
		return cfg.NodeName
	}
	name, _ := os.Hostname()
	return name
}

// detailsPatience is far above what the engine needs, and below statusPatience.
const detailsPatience = 3 * time.Second

// report is what the process says of its host.
func (s *statusServer) report() status.Report {
	r := status.Report{APIVersion: status.APIVersion, Host: s.host, Version: ourVersion(), Nodes: []status.Node{}}
	ready, text, remark := s.health.readiness()
	r.Ready, r.Role = ready, s.health.role()
	if text != readyText {
		r.Message = text
	}
	if remark != "" {
		r.Warnings = []string{remark}
	}
	all, whole := s.health.details(detailsPatience)
	if !whole {
		r.Warnings = append(r.Warnings, fmt.Sprintf("a node's backend has not answered for %v: handshakes, paths, peers and bytes of all are missing here", detailsPatience))
	}
	for _, d := range all {
		r.Nodes = append(r.Nodes, nodeOf(&d))
	}
	r.Nodes = append(r.Nodes, s.health.withoutNode()...)
	slices.SortStableFunc(r.Nodes, func(a, b status.Node) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Pod, b.Pod))
	})
	return r
}

// nodeOf is what the engine knows of a node.
func nodeOf(d *engine.Detail) status.Node {
	n := status.Node{
		Namespace: d.Namespace, Pod: d.Pod, UID: d.UID, SandboxID: d.SandboxID,
		State: string(d.State), Reason: d.Reason,
		Hostname: d.Hostname, DNSName: d.DNSName, Addresses: d.Addresses, Tags: d.Tags, NodeID: d.NodeID,
		LoginServer: d.LoginServer, Profile: d.Features.Profile, Features: featuresFor(d.Features),
		Since: d.Since, AttachedAt: d.AttachedAt, ReadyIn: d.ReadyIn.Seconds(),
		ControlConnected: d.Measured.Control, KeyExpiry: d.Measured.KeyExpiry,
		DERP: d.Measured.HomeDERP, PathDERP: d.PathDERP, LastHandshake: d.Measured.Newest,
		Peers: d.Measured.Peers, Sessions: d.Measured.Sessions,
	}
	if d.Active {
		n.Path = pathNames[d.Path]
	}
	for _, t := range d.Measured.Traffic {
		n.BytesIn += t[measure.In].Bytes
		n.BytesOut += t[measure.Out].Bytes
	}
	local := d.Measured.Traffic[measure.Local]
	n.LocalBytesIn, n.LocalBytesOut = local[measure.In].Bytes, local[measure.Out].Bytes
	for _, p := range d.Sessions {
		peer := status.Peer{
			Name: p.Name, Address: p.Address, Endpoint: p.Endpoint, DERP: p.DERP,
			LastWrite: p.LastWrite, LastHandshake: p.LastHandshake, BytesIn: p.BytesIn, BytesOut: p.BytesOut,
		}
		if p.Active {
			peer.Path = pathNames[p.Path]
		}
		n.SessionPeers = append(n.SessionPeers, peer)
	}
	return n
}

var pathNames = [measure.Paths]string{
	measure.Direct: status.Direct, measure.DERP: status.DERP, measure.PeerRelay: status.PeerRelay, measure.Local: status.Local,
}

// featuresFor are what a pod asks for, as annotations say it: values by keys without
// the prefix. The profile is not among them, which is no feature to a user.
func featuresFor(f engine.Features) map[string]string {
	var routes []string
	for _, p := range f.AdvertiseRoutes {
		routes = append(routes, p.String())
	}
	values := map[string]string{annotationExitNode: f.ExitNode, annotationAdvertiseRoutes: strings.Join(routes, ",")}
	for key, on := range map[string]bool{
		annotationDNS: f.DNS, annotationShieldsUp: f.ShieldsUp, annotationSocket: f.Socket, annotationEphemeral: f.Ephemeral,
		annotationAcceptRoutes: f.AcceptRoutes, annotationAdvertiseExitNode: f.AdvertiseExitNode,
	} {
		if on {
			values[key] = strconv.FormatBool(on)
		}
	}
	if f.Workload {
		values[annotationIdentity] = "workload"
	}
	if f.Wait > 0 {
		values[annotationWait], values[annotationWaitPolicy] = f.Wait.String(), "start"
		if f.WaitFails {
			values[annotationWaitPolicy] = "fail"
		}
	}
	maps.DeleteFunc(values, func(_, v string) bool { return v == "" })
	short := make(map[string]string, len(values))
	for key, v := range values {
		short[strings.TrimPrefix(key, annotationPrefix)] = v
	}
	return short
}
