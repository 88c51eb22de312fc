// SPDX-License-Identifier: BSD-3-Clause

package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"tailscale-nri/k3d/lab/internal/wait"
)

// pair is two places with a tailnet between them.
type pair struct {
	name     string
	from, to place
	daemons  []int  // the processes that carry its packets
	labtool  string // its path
}

// The pairs of the traffic part.
const (
	ofPods  = "pods"  // on two hosts
	ofLocal = "local" // on one host
	ofStock = "stock" // two stock tailscaleds
)

// transfer is one kind of TCP traffic.
type transfer struct {
	streams int
	ipv6    bool
	back    bool // the far end sends
}

func (t transfer) String() string {
	family, direction := 4, "forth"
	if t.ipv6 {
		family = 6
	}
	if t.back {
		direction = "back"
	}
	return fmt.Sprintf("TCP%d/ip=%d/dir=%s", t.streams, family, direction)
}

func transfers() (all []transfer) {
	for _, streams := range []int{1, 4} {
		for _, ipv6 := range []bool{false, true} {
			all = append(all, transfer{streams, ipv6, false}, transfer{streams, ipv6, true})
		}
	}
	return all
}

// traffic compares two pods of two hosts, and two of one, with two stock tailscaleds. The pairs take turns, and change
// who is first: what else goes on in the machine meets all of them.
func traffic(ctx context.Context, cfg Config, r *report) error {
	return onTailnet(ctx, cfg.Lab, func(t *tailnet) error {
		pairs, hosts, err := t.makePairs(ctx)
		if err != nil {
			return err
		}
		for round := range cfg.Rounds {
			for _, tr := range transfers() {
				for _, p := range pairs {
					profiled := cfg.startProfile(ctx, round == 0 && p.name == ofPods, hosts[0], tr.String())
					if err := errors.Join(p.transfer(ctx, tr, cfg.Span, r), profiled()); err != nil {
						return fmt.Errorf("round %d, %v, %s: %w", round+1, tr, p.name, err)
					}
				}
			}
			for _, p := range pairs {
				if err := errors.Join(p.roundTrips(ctx, cfg.Span, r), p.smallPackets(ctx, cfg, r)); err != nil {
					return fmt.Errorf("round %d, %s: %w", round+1, p.name, err)
				}
			}
			slices.Reverse(pairs)
		}
		trafficFigures(r)
		return nil
	})
}

func trafficFigures(r *report) {
	names := map[int][]string{}
	for _, t := range transfers() {
		names[t.streams] = append(names[t.streams], t.String())
	}
	r.ratio("tcp1_ratio", ofPods, ofStock, unitRate, names[1]...)
	r.ratio("tcp4_ratio", ofPods, ofStock, unitRate, names[4]...)
	r.ratio("local_tcp_ratio", ofLocal, ofStock, unitRate, slices.Concat(names[1], names[4])...)
	r.ratio("udp_small_pps_ratio", ofPods, ofStock, unitPackets, smallName)
	r.ratio("rr_latency_ratio", ofPods, ofStock, unitMicros, "RR/tcp", "RR/udp")
	r.ratio("cpu_seconds_per_gb_ratio", ofPods, ofStock, unitCPU, slices.Concat(names[1], names[4])...)
	r.ratio("machine_seconds_per_gb_ratio", ofPods, ofStock, unitMachine, slices.Concat(names[1], names[4])...)
}

// makePairs lets everything in, starts what serves at the far ends, and sends a little each way, so that all are on the
// direct path when it counts.
func (t *tailnet) makePairs(ctx context.Context) ([]*pair, []*host, error) {
	var hosts []*host
	var pods []*pod
	for i, name := range []string{"a", "b", "c"} {
		if i < 2 {
			h, err := t.addHost(ctx, i)
			if err != nil {
				return nil, nil, err
			}
			defer h.watch(ctx)()
			hosts = append(hosts, h)
		}
		p, err := hosts[i%2].join(ctx, name)
		if err != nil {
			return nil, nil, err
		}
		pods = append(pods, p)
	}
	near, nearPlace, err := t.addPeer(ctx)
	if err != nil {
		return nil, nil, err
	}
	far, farPlace, err := t.addPeer(ctx)
	if err != nil {
		return nil, nil, err
	}
	a, b := hosts[0].plugin.Serving(), hosts[1].plugin.Serving()
	tool := t.lab.ToolPath()
	pairs := []*pair{
		{ofPods, pods[0].place, pods[1].place, []int{a, b}, tool},
		{ofStock, nearPlace, farPlace, []int{near.Process().PID(), far.Process().PID()}, tool},
		{ofLocal, pods[0].place, pods[2].place, []int{a}, tool},
	}
	for _, p := range pairs {
		if err := p.open(ctx, t.lab.Dir()); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return pairs, hosts, nil
}

// open starts the servers at the far end, which end with the lab, and warms the path up.
func (p *pair) open(ctx context.Context, dir string) error {
	log, err := os.Create(filepath.Join(dir, "log", "servers-"+p.name+".log"))
	if err != nil {
		return fmt.Errorf("starting servers: %w", err)
	}
	defer log.Close()
	for _, args := range [][]string{{"iperf3", "-s"}, {p.labtool, "echo"}} {
		cmd := p.to.command(ctx, args...)
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("starting %v: %w", args, err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, ipv6 := range []bool{false, true} {
		err := wait.Until(ctx, 0, func(ctx context.Context) error {
			_, err := p.iperf(ctx, ipv6, "-n", "1M")
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// transfer adds speed and CPU time of one transfer.
func (p *pair) transfer(ctx context.Context, t transfer, span time.Duration, r *report) error {
	args := []string{"-P", strconv.Itoa(t.streams), "-t", seconds(span)}
	if t.back {
		args = append(args, "-R")
	}
	before, err := readUsage(p.daemons)
	if err != nil {
		return err
	}
	got, err := p.iperf(ctx, t.ipv6, args...)
	if err != nil {
		return err
	}
	after, err := readUsage(p.daemons)
	if err != nil {
		return err
	}
	received := got.End.Received
	gigabytes := received.Bytes / 1e9
	if gigabytes == 0 || received.Seconds == 0 {
		return errors.New("nothing has arrived")
	}
	r.add(t.String(), p.name, measured{
		unitRate:    gigabytes * 8 / received.Seconds,
		unitCPU:     (after.daemons - before.daemons).Seconds() / gigabytes,
		unitMachine: (after.machine - before.machine).Seconds() / gigabytes,
	})
	return nil
}

// seconds is a span for iperf3, which takes whole ones and goes on forever with 0.
func seconds(d time.Duration) string {
	return strconv.Itoa(max(1, int(d.Round(time.Second).Seconds())))
}

// iperfSays is iperf3's report, as far as it counts here.
type iperfSays struct {
	Error string
	End   struct {
		Received struct{ Bytes, Seconds float64 } `json:"sum_received"`
		// Sum is UDP's: what was sent, by the sender's count, and what of that did not arrive.
		Sum struct {
			Seconds float64
			Packets int
			Lost    int `json:"lost_packets"`
		}
	}
}

// iperf runs iperf3 at the near end, and once more if that fails: its UDP test gives up at the first packet that is lost
// while it is set up.
func (p *pair) iperf(ctx context.Context, ipv6 bool, args ...string) (said iperfSays, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	args = append([]string{"iperf3", "-J", "--connect-timeout", "5000", "-c", p.to.addr(ipv6).String()}, args...)
	for range 2 {
		var out string
		out, err = p.from.run(ctx, args...)
		said = iperfSays{}
		err = errors.Join(err, json.Unmarshal([]byte(out), &said))
		if said.Error != "" {
			err = errors.New(said.Error)
		}
		if err == nil {
			return said, nil
		}
	}
	return said, fmt.Errorf("running %v: %w", args, err)
}

// roundTrips asks for one byte at a time.
func (p *pair) roundTrips(ctx context.Context, span time.Duration, r *report) error {
	for _, protocol := range []string{"tcp", "udp"} {
		out, err := p.from.run(ctx, p.labtool, "rr", "-size", "1", "-timeout", "1s", "-udp="+strconv.FormatBool(protocol == "udp"),
			"-for", span.String(), p.to.addr(false).String()+":7")
		if err != nil {
			return err
		}
		var said struct{ P50, P99 float64 }
		if err := json.Unmarshal([]byte(out), &said); err != nil {
			return fmt.Errorf("reading labtool's %q: %w", out, err)
		}
		r.add("RR/"+protocol, p.name, measured{unitMicros: said.P50, unitTail: said.P99})
	}
	return nil
}

const smallName = "SmallUDP"

const (
	smallSize = 64 // payload in bytes
	// smallLoss is the share of packets that a rate may lose and still count as free of loss.
	smallLoss = 0.001
	// The search's bounds in packets per second, and how many rates it tries between them: seven halvings of eight
	// octaves find the rate to 5 %.
	smallLeast, smallMost, smallTries = 2000, 512000, 7
)

// smallPackets finds the highest rate of small UDP packets that arrive, by halving on a logarithmic scale. A rate that
// the sender does not reach counts as what it reached, and as too high.
func (p *pair) smallPackets(ctx context.Context, cfg Config, r *report) error {
	low, high, best := float64(smallLeast), float64(smallMost), 0.0
	for range smallTries {
		rate := geometricMean(low, high)
		got, err := p.iperf(ctx, false, "-u", "-l", strconv.Itoa(smallSize), "-t", seconds(cfg.Probe),
			"-b", strconv.Itoa(int(rate*smallSize*8)), "-w", strconv.Itoa(receiveRoom()))
		if err != nil {
			return err
		}
		sum := got.End.Sum
		if sum.Packets == 0 || sum.Seconds == 0 {
			return errors.New("iperf3 has sent no packets")
		}
		reached := float64(sum.Packets-sum.Lost) / sum.Seconds
		if float64(sum.Lost)/float64(sum.Packets) > smallLoss {
			high = rate
			continue
		}
		best = max(best, reached)
		if low = rate; reached < 0.9*rate {
			high, low = rate, max(smallLeast, min(low, reached))
		}
	}
	if best == 0 {
		best = smallLeast // no rate was free of loss
	}
	r.add(smallName, p.name, measured{unitPackets: best})
	return nil
}

// lookIperf says that iperf3 is missing before anything is made.
func lookIperf() error {
	if _, err := exec.LookPath("iperf3"); err != nil {
		return errors.New("missing iperf3; install it with: make lab-tools (Debian package iperf3)")
	}
	return nil
}
