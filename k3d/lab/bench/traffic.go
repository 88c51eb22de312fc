// SPDX-License-Identifier: BSD-3-Clause

package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"tailscale-nri/k3d/lab/demo"
)

// pair is two places with a tailnet between them.
type pair struct {
	name     string
	from, to place
	daemons  []int    // the processes that carry its packets
	far      *farSide // what serves at to
}

// transfer is one kind of traffic.
type transfer struct {
	name    string
	ipv6    bool
	streams int // 0 is UDP
}

func (t transfer) addr(p place) netip.Addr {
	if t.ipv6 {
		return p.addr6
	}
	return p.addr
}

var transfers = []transfer{
	{"TCP, IPv4, 1 stream", false, 1},
	{"TCP, IPv4, 4 streams", false, 4},
	{"TCP, IPv6, 1 stream", true, 1},
	{"TCP, IPv6, 4 streams", true, 4},
	{"UDP, 1200 B", false, 0},
}

// traffic compares two pods with two stock tailscaleds. The pairs take turns, and change who is first: what else goes
// on in the machine meets both.
func traffic(ctx context.Context, cfg Config, r *report) error {
	return onScene(ctx, cfg.Lab, func(scene *demo.Scene) error {
		pairs, end, err := makePairs(ctx, scene)
		defer end()
		if err != nil {
			return err
		}
		if err := addMemory(pairs, "memory after the warm-up", r); err != nil {
			return err
		}
		turns := slices.Clone(pairs)
		for round := range cfg.Rounds {
			for _, t := range transfers {
				for _, p := range turns {
					if err := p.measure(ctx, t, cfg.Span, r); err != nil {
						return fmt.Errorf("round %d, %s, %s: %w", round+1, t.name, p.name, err)
					}
				}
			}
			slices.Reverse(turns)
		}
		return addMemory(pairs, "memory after the traffic", r)
	})
}

// makePairs lets everything in and sends a little each way, so that all are on the direct path when it counts.
// end is to be called in any case.
func makePairs(ctx context.Context, scene *demo.Scene) (pairs []*pair, end func(), err error) {
	s, done := watchScene(ctx, scene)
	defer done()
	var a, b *joined
	end = func() {
		for _, p := range pairs {
			p.far.end()
		}
	}
	if a, err = s.join(ctx, "a"); err != nil {
		return nil, end, err
	}
	if b, err = s.join(ctx, "b"); err != nil {
		return nil, end, err
	}
	second, err := s.startPeer(ctx, "benchpeer")
	if err != nil {
		return nil, end, err
	}
	pairs = []*pair{
		{"two pods", a.place, b.place, []int{scene.Plugin.Serving()}, nil},
		{"two tailscaleds", s.peerPlace(scene.Peer), s.peerPlace(second),
			[]int{scene.Peer.Process().PID(), second.Process().PID()}, nil},
	}
	for _, p := range pairs {
		if p.far, err = serveAt(ctx, p.to); err != nil {
			return pairs, end, err
		}
		if err := p.warmUp(ctx); err != nil {
			return pairs, end, fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return pairs, end, nil
}

// farSide is labtool that serves everything at the far end of a pair.
type farSide struct{ cmd *exec.Cmd }

func serveAt(ctx context.Context, to place) (*farSide, error) {
	cmd, err := to.command(ctx, "all")
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting labtool at %v: %w", to.addr, err)
	}
	return &farSide{cmd}, nil
}

func (f *farSide) pid() int { return f.cmd.Process.Pid }

// end may be called on none.
func (f *farSide) end() {
	if f != nil {
		_ = f.cmd.Process.Kill()
		_ = f.cmd.Wait() // it was killed, which is no news
	}
}

func (p *pair) warmUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, t := range transfers {
		for {
			_, err := p.send(ctx, t, 300*time.Millisecond)
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return err
			}
		}
	}
	return nil
}

// measure adds speed, loss and CPU time of one transfer.
func (p *pair) measure(ctx context.Context, t transfer, span time.Duration, r *report) error {
	before, err := p.usage()
	if err != nil {
		return err
	}
	got, err := p.send(ctx, t, span)
	if err != nil {
		return err
	}
	after, err := p.usage()
	if err != nil {
		return err
	}
	if t.streams == 0 {
		r.add(t.name+" echoed, loss", p.name, "%", 100*(1-float64(got.Received)/float64(got.Sent)))
		r.add(t.name+" echoed, each way", p.name, "Gb/s", got.gigabits())
		return nil
	}
	gigabytes := float64(got.Bytes) / 1e9
	r.add(t.name, p.name, "Gb/s", got.gigabits())
	r.add(t.name+", CPU of the daemons", p.name, "s/GB", (after.daemons-before.daemons).Seconds()/gigabytes)
	r.add(t.name+", CPU with sender and sink", p.name, "s/GB",
		(after.daemons-before.daemons+after.far-before.far+got.cpu).Seconds()/gigabytes)
	r.add(t.name+", CPU of the machine", p.name, "s/GB", (after.machine-before.machine).Seconds()/gigabytes)
	return nil
}

// usage is CPU time used so far.
type usage struct{ daemons, far, machine time.Duration }

func (p *pair) usage() (u usage, err error) {
	var errs [3]error
	u.daemons, errs[0] = cpuTime(p.daemons...)
	u.far, errs[1] = cpuTime(p.far.pid())
	u.machine, errs[2] = machineTime()
	return u, errors.Join(errs[:]...)
}

// result is what labtool says of a transfer, and what it used itself.
type result struct {
	Bytes          int64
	Seconds        float64
	Sent, Received int
	cpu            time.Duration
}

func (r result) gigabits() float64 { return float64(r.Bytes) * 8 / 1e9 / r.Seconds }

const (
	udpSize = 1200
	// udpEvery makes 150 Mb/s of udpSize, each way.
	udpEvery = 64 * time.Microsecond
)

// send runs labtool at the near end.
func (p *pair) send(ctx context.Context, t transfer, span time.Duration) (res result, err error) {
	to := t.addr(p.to)
	args := []string{"send", "-for", span.String(), "-streams", strconv.Itoa(t.streams), netip.AddrPortFrom(to, 5201).String()}
	if t.streams == 0 {
		args = []string{"udp", "-size", strconv.Itoa(udpSize), "-every", udpEvery.String(), "-timeout", "1s",
			"-count", strconv.Itoa(int(span / udpEvery)), netip.AddrPortFrom(to, 7).String()}
	}
	cmd, err := p.from.command(ctx, args...)
	if err != nil {
		return res, err
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return res, fmt.Errorf("running labtool %v: %w: %s", args, err, strings.TrimSpace(stderr.String()))
	}
	if err := json.Unmarshal(stdout.Bytes(), &res); err != nil {
		return res, fmt.Errorf("reading labtool's %q: %w", stdout.String(), err)
	}
	if res.Bytes == 0 {
		return res, fmt.Errorf("labtool %v: nothing arrived", args)
	}
	res.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return res, nil
}

func addMemory(pairs []*pair, name string, r *report) error {
	for _, p := range pairs {
		var sum int64
		for _, pid := range p.daemons {
			rss, err := residentMemory(pid)
			if err != nil {
				return err
			}
			sum += rss
		}
		r.add(name, p.name, unitMiB, float64(sum)/mebibyte)
	}
	return nil
}
