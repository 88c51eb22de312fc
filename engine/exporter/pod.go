// SPDX-License-Identifier: BSD-3-Clause

package exporter

import (
	"cmp"
	"slices"
	"time"

	dto "github.com/prometheus/client_model/go"

	"tailscale-nri/engine/measure"
)

// Label pairs that all pods have in common.
var (
	directionPairs = [measure.Directions]*dto.LabelPair{pair("direction", measure.In.String()), pair("direction", measure.Out.String())}
	pathPairs      = [measure.Paths]*dto.LabelPair{
		pair("path", measure.Direct.String()), pair("path", measure.DERP.String()),
		pair("path", measure.PeerRelay.String()), pair("path", measure.Local.String()),
	}
	filePairs = [measure.Files]*dto.LabelPair{
		pair("file", measure.RecordFile.String()), pair("file", measure.StateFile.String()),
		pair("file", measure.NetmapFile.String()), pair("file", measure.ResolvConfFile.String()),
	}
	oldest, newest = pair("of", "oldest"), pair("of", "newest")
)

// podScrape writes one pod's series. They share the pod's label pairs.
type podScrape struct {
	scrape
	namespace, pod *dto.LabelPair
	plain          []*dto.LabelPair
}

func (s scrape) pod(p *measure.Pod) {
	ps := podScrape{scrape: s, namespace: pair("namespace", p.Namespace), pod: pair("pod", p.Name)}
	ps.plain = []*dto.LabelPair{ps.namespace, ps.pod}
	ps.write(podUp, is(p.Up))
	if !p.HasNode {
		return
	}
	for f, bytes := range p.Written {
		ps.write(podWritten, float64(bytes), filePairs[f])
	}
	if !p.Served {
		return
	}
	for path := range measure.Paths {
		for d, t := range p.Traffic[path] {
			ps.write(podBytes, float64(t.Bytes), directionPairs[d], pathPairs[path])
			ps.write(podPackets, float64(t.Packets), directionPairs[d], pathPairs[path])
		}
	}
	for _, d := range p.Drops {
		ps.write(podDrops, float64(d.Packets), directionPairs[d.Direction], pair("reason", d.Reason))
	}
	ps.write(podCutRefusals, float64(p.CutRefusals))
	ps.write(podControl, is(p.Control))
	if !p.Answered {
		return
	}
	ps.write(podPeers, float64(p.Peers))
	ps.write(podSessions, float64(p.Sessions))
	ps.at(podKeyExpiry, p.KeyExpiry)
	ps.at(podHandshake, p.Oldest, oldest)
	ps.at(podHandshake, p.Newest, newest)
	if p.HomeDERP != "" {
		ps.write(podHome, 1, pair("region", p.HomeDERP))
	}
}

// at writes a time, unless it is zero.
func (s podScrape) at(f Family, t time.Time, more ...*dto.LabelPair) {
	if !t.IsZero() {
		s.write(f, float64(t.UnixNano())/1e9, more...)
	}
}

func (s podScrape) write(f Family, v float64, more ...*dto.LabelPair) {
	labels := s.plain
	if len(more) > 0 {
		labels = sorted(append(slices.Clip(labels), more...))
	}
	s.to <- &sample{s.descs[f.Name], labels, f.Kind, v}
}

func sorted(labels []*dto.LabelPair) []*dto.LabelPair {
	slices.SortFunc(labels, func(a, b *dto.LabelPair) int { return cmp.Compare(*a.Name, *b.Name) })
	return labels
}
