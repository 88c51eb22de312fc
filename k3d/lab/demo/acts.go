// SPDX-License-Identifier: BSD-3-Clause

package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/scene"
)

// prepare starts the peer, then a pod to compare with, then the plugin.
func (p *play) prepare(ctx context.Context) error {
	begin := time.Now()
	p.screen.Doing("logging the peer in")
	if err := p.StartPeer(ctx); err != nil {
		return err
	}
	p.screen.Saw(time.Since(begin), "peer in the tailnet: %v, %v", p.Peer.IP4, p.Peer.IP6)
	if err := p.makeReference(ctx); err != nil {
		return err
	}
	begin = time.Now()
	if err := p.StartPlugin(); err != nil {
		return err
	}
	if err := p.Registered(ctx); err != nil {
		return err
	}
	p.screen.Saw(time.Since(begin), "plugin registered with containerd, process %d", p.Plugin.PID())
	return nil
}

// makeReference notes what a pod's network is like without a plugin on the node.
func (p *play) makeReference(ctx context.Context) error {
	pod, err := p.RunPod(ctx, lab.PodSpec{Name: "before"})
	if err != nil {
		return err
	}
	network, err := p.NetworkOf(ctx, pod)
	if err != nil {
		return err
	}
	p.reference = network.Alike(pod)
	return p.RemovePod(ctx, pod)
}

// join makes the three pods at once and times each one's way into the tailnet.
func (p *play) join(ctx context.Context) error {
	p.screen.Doing("making pods")
	pods := []struct {
		pod  **scene.Pod
		spec lab.PodSpec
	}{
		{&p.web, lab.PodSpec{Name: "web", Annotations: scene.OptIn()}},
		{&p.db, lab.PodSpec{Name: "db", Annotations: scene.OptIn("tailscale.com/hostname", scene.ClusterName+"-database")}},
		{&p.plain, lab.PodSpec{Name: "plain"}},
	}
	var made errgroup.Group
	for _, pod := range pods {
		made.Go(func() (err error) { *pod.pod, err = p.RunPod(ctx, pod.spec); return err })
	}
	if err := made.Wait(); err != nil {
		return err
	}
	return p.firstPings(ctx)
}

// firstPings shows who the nodes are and how long they took. The pods ping each other in turn: two that never met and
// send in the same millisecond both begin a WireGuard handshake, each answers the other's, neither counts, and both try
// again after 5 s (WireGuard, 6.1: Rekey-Timeout). That is between any two WireGuard peers, not ours to show here.
func (p *play) firstPings(ctx context.Context) error {
	pairs := []struct{ pod, other *scene.Pod }{{p.web, p.db}, {p.db, p.web}}
	pings := make([][2]time.Duration, len(pairs))
	var sent errgroup.Group
	for i, pair := range pairs {
		sent.Go(func() (err error) { pings[i][0], err = p.FirstPing(ctx, p.AtPeer(), pair.pod); return err })
	}
	for i, pair := range pairs {
		took, err := p.FirstPing(ctx, p.InPod(pair.other), pair.pod)
		if err != nil {
			return errors.Join(err, sent.Wait())
		}
		pings[i][1] = took
	}
	if err := sent.Wait(); err != nil {
		return err
	}
	for i, pair := range pairs {
		pod, node := pair.pod, pair.pod.Node()
		p.screen.Saw(pod.CRITook, "%s: containerd has made the sandbox", pod.FullName())
		p.screen.Saw(pings[i][0], "%s: from there to the first answered ping from the peer", pod.FullName())
		p.screen.Saw(pings[i][1], "%s: and from pod %s", pod.FullName(), pair.other.Spec.Name)
		p.screen.Saw(0, "%s: is %s, %v and %v", pod.FullName(), node.DNSName, pod.IP4(), pod.IP6())
		if err := p.inKernel(ctx, pod); err != nil {
			return err
		}
	}
	return nil
}

// inKernel asks the pod's kernel for what the plugin says.
func (p *play) inKernel(ctx context.Context, pod *scene.Pod) error {
	out, err := p.Lab.InPod(ctx, pod.ID, "ip", "-o", "addr", "show", "dev", "ts0", "scope", "global")
	if err != nil {
		return err
	}
	want := []string{pod.IP4().String() + "/32", pod.IP6().String() + "/128"}
	if slices.ContainsFunc(want, func(addr string) bool { return !strings.Contains(out, addr) }) {
		return fmt.Errorf("%s: expected %v on ts0, saw %s", pod.FullName(), want, out)
	}
	p.screen.Saw(0, "%s: the kernel has both on ts0 in the pod", pod.FullName())
	return nil
}

// pages has the peer fetch from both pods.
func (p *play) pages(ctx context.Context) error { return p.pagesOf(ctx, p.web, p.db) }

// pagesOf has the peer fetch from each pod at each address.
func (p *play) pagesOf(ctx context.Context, pods ...*scene.Pod) error {
	for _, pod := range pods {
		for _, at := range []netip.Addr{pod.IP4(), pod.IP6()} {
			begin := time.Now()
			peer := p.AtPeer()
			if err := p.FetchAs(ctx, peer, peer.Own(at), pod, at); err != nil {
				return err
			}
			p.screen.Saw(time.Since(begin), "peer fetched a page from %s at %v; the pod saw %v asking", pod.Spec.Name, at, peer.Own(at))
		}
	}
	return nil
}

// podToPod has both pods ask each other, and the peer both, at the same time, several times over.
func (p *play) podToPod(ctx context.Context) error {
	const rounds = 10
	p.screen.Doing("fetching in both directions")
	asks := []struct {
		from scene.Place
		to   *scene.Pod
	}{{p.InPod(p.web), p.db}, {p.InPod(p.db), p.web}, {p.AtPeer(), p.web}, {p.AtPeer(), p.db}}
	var all errgroup.Group
	for _, ask := range asks {
		for _, at := range []netip.Addr{ask.to.IP4(), ask.to.IP6()} {
			all.Go(func() error { return p.fetchOften(ctx, rounds, ask.from, ask.to, at) })
		}
	}
	if err := all.Wait(); err != nil {
		return err
	}
	for _, ask := range asks {
		p.screen.Saw(0, "%s fetched %d pages from %s, each under its own address %v or %v", ask.from.Name, 2*rounds,
			ask.to.Spec.Name, ask.from.IP4, ask.from.IP6)
	}
	return nil
}

func (p *play) fetchOften(ctx context.Context, rounds int, from scene.Place, to *scene.Pod, at netip.Addr) error {
	for range rounds {
		if err := p.FetchAs(ctx, from, from.Own(at), to, at); err != nil {
			return err
		}
	}
	return nil
}

// cluster looks at what the plugin has to leave alone.
func (p *play) cluster(ctx context.Context) (err error) {
	if p.plainWas, err = p.NetworkOf(ctx, p.plain); err != nil {
		return err
	}
	if strings.Contains(string(p.plainWas), "ts0") {
		return fmt.Errorf("plain: expected no ts0, saw\n%s", p.plainWas)
	}
	if err := scene.Differs("plain, next to a pod from before the plugin", p.reference, p.plainWas.Alike(p.plain)); err != nil {
		return err
	}
	p.screen.Saw(0, "plain has no ts0; links, addresses, routes, rules and resolv.conf are as without a plugin")
	pods := []*scene.Pod{p.web, p.db, p.plain}
	if err := p.ClusterTraffic(ctx, pods...); err != nil {
		return err
	}
	for _, pod := range pods {
		p.screen.Saw(0, "%s is reached over eth0 by the other pods and the node at %s, and reaches the node", pod.Spec.Name,
			strings.Join(pod.IPs, ", "))
	}
	return nil
}

// restart kills the plugin while connections are in use, and has them go on.
func (p *play) restart(ctx context.Context) error {
	p.screen.Doing("killing the plugin under traffic")
	was := p.web.Node()
	var back time.Duration
	killed := p.Plugin.PID()
	waits, err := p.Survive(ctx, p.web, []scene.Place{p.AtPeer(), p.InPod(p.db)}, func(ctx context.Context) (err error) {
		back, err = p.KillAndStart(ctx, p.web, p.db)
		return err
	})
	if err != nil {
		return err
	}
	p.screen.Saw(back, "plugin %d killed with SIGKILL; %d started, both nodes Running again", killed, p.Plugin.PID())
	p.screen.Saw(waits[0], "peer -> web: the same TCP connection goes on; this is its longest silence")
	p.screen.Saw(waits[1], "db -> web: the same")
	if fmt.Sprint(p.web.Node().Addresses) != fmt.Sprint(was.Addresses) || p.web.Node().NodeID != was.NodeID {
		return fmt.Errorf("web: expected to be node %s at %v as before, saw %s at %v", was.NodeID, was.Addresses,
			p.web.Node().NodeID, p.web.Node().Addresses)
	}
	p.screen.Saw(0, "web is the same node at the same addresses")
	return p.pages(ctx)
}

// refusal makes a pod that cannot be served.
func (p *play) refusal(ctx context.Context) error {
	spec := lab.PodSpec{Name: "wrong", Annotations: map[string]string{"tailscale.com/enabled": "yes please"}}
	refused, err := p.Refused(ctx, spec, "tailscale.com/enabled", "yes please", `"true"`)
	if err != nil {
		return err
	}
	p.screen.Saw(0, "containerd answers, and kubectl describe would show:")
	p.screen.Note("%v", refused)
	p.screen.Saw(0, "no link, network namespace, state or device is left of it")
	return nil
}

// deletion ends a pod and looks for what is left.
func (p *play) deletion(ctx context.Context) error {
	begin := time.Now()
	if err := p.RemovePod(ctx, p.db); err != nil {
		return err
	}
	p.screen.Saw(time.Since(begin), "%s stopped and removed over CRI", p.db.FullName())
	tailnet, peer, err := p.AwaitGone(ctx, p.db)
	if err != nil {
		return err
	}
	p.screen.Saw(tailnet, "device %s is gone from the tailnet", p.db.Node().NodeID)
	p.screen.Saw(peer, "and from the peer's `tailscale status`")
	is, err := p.NetworkOf(ctx, p.plain)
	if err != nil {
		return err
	}
	if err := scene.Differs("plain, after all this", p.plainWas, is); err != nil {
		return err
	}
	p.screen.Saw(0, "plain is as it was; web still serves:")
	return p.pagesOf(ctx, p.web)
}
