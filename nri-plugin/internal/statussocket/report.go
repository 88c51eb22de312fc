// SPDX-License-Identifier: BSD-3-Clause

package statussocket

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"tailscale-nri/engine"
	"tailscale-nri/engine/measure"
	"tailscale-nri/nri-plugin/internal/buildinfo"
	"tailscale-nri/nri-plugin/internal/podspec"
	"tailscale-nri/nri-plugin/internal/status"
)

// detailsPatience is above what the engine waits for a backend that hangs. Twice that is
// below patience.
const detailsPatience = 3 * time.Second

// report makes the Report of this host; ctx bounds the wait for the engine.
func (s *Server) report(ctx context.Context) status.Report {
	r := status.Report{APIVersion: status.APIVersion, Host: s.Host, Version: buildinfo.Version(), Nodes: []status.Node{}}
	ready, text, remark := s.Health.readiness()
	r.Ready, r.Role = ready, s.Health.role()
	if text != ReadyText {
		r.Message = text
	}
	if remark != "" {
		r.Warnings = []string{remark}
	}
	s.addNodes(ctx, &r)
	r.Nodes = append(r.Nodes, s.Health.WithoutNode()...)
	slices.SortStableFunc(r.Nodes, func(a, b status.Node) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Pod, b.Pod))
	})
	return r
}

// addNodes writes what the engine knows of its nodes, or that it does not answer.
func (s *Server) addNodes(ctx context.Context, r *status.Report) {
	patience, cancel := context.WithTimeout(ctx, detailsPatience)
	defer cancel()
	all, err := s.Health.allDetails(patience)
	if err != nil {
		patience, cancel := context.WithTimeout(ctx, detailsPatience)
		defer cancel()
		nodes, err := s.Health.nodes(patience)
		if err != nil {
			r.Ready, r.Message = false, fmt.Sprintf("the engine has not answered for %v: its nodes are missing here", 2*detailsPatience)
			return
		}
		r.Warnings = append(r.Warnings, fmt.Sprintf("the engine has not said all for %v: handshakes, paths, peers and bytes are missing here", detailsPatience))
		for _, n := range nodes {
			all = append(all, engine.Detail{NodeStatus: n})
		}
	}
	var hang []string
	for _, d := range all {
		r.Nodes = append(r.Nodes, nodeOf(&d))
		if d.Unanswered {
			hang = append(hang, d.Namespace+"/"+d.Pod)
		}
	}
	if len(hang) > 0 {
		r.Warnings = append(r.Warnings, "the backends of these pods do not answer, and their handshakes, paths and peers are missing here: "+strings.Join(hang, ", "))
	}
}

// nodeOf makes a status.Node of the engine's details.
func nodeOf(d *engine.Detail) status.Node {
	n := status.Node{
		Namespace: d.Namespace, Pod: d.Pod, UID: d.UID, SandboxID: d.SandboxID,
		State: string(d.State), Reason: d.Reason,
		Hostname: d.Hostname, DNSName: d.DNSName, Addresses: d.Addresses, Tags: d.Tags, NodeID: d.NodeID,
		LoginServer: d.LoginServer, Profile: d.Features.Profile, Features: podspec.Values(d.Features),
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
