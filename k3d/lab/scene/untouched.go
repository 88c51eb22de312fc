// SPDX-License-Identifier: BSD-3-Clause

package scene

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Network is all that the kernel says of a pod's network, and the resolv.conf of its container, as text.
type Network string

// NetworkOf reads a pod's network.
func (s *Scene) NetworkOf(ctx context.Context, pod *Pod) (Network, error) {
	var all strings.Builder
	for _, args := range []string{
		"-o link", "-o addr", "route show table all", "-6 route show table all", "rule", "-6 rule", "-o neigh show nud permanent",
	} {
		out, err := s.Lab.InPod(ctx, pod.ID, "ip", strings.Fields(args)...)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&all, "ip %s\n%s", args, out)
	}
	resolv, err := s.resolvConf(pod)
	fmt.Fprintf(&all, "resolv.conf\n%s", resolv)
	return Network(all.String()), err
}

// resolvConf is what the pod's container sees, so that a mount over it would show.
func (s *Scene) resolvConf(pod *Pod) (string, error) {
	want, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", pod.PID))
	if err != nil {
		return "", fmt.Errorf("looking at pod %s: %w", pod.FullName(), err)
	}
	namespaces, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, file := range namespaces {
		root := filepath.Join(strings.TrimSuffix(file, "/ns/net"), "root")
		info, err := os.Stat(file)
		if err != nil || !os.SameFile(info, want) {
			continue
		}
		if _, err := os.Stat(filepath.Join(root, "labtool")); err != nil {
			continue // the pause container
		}
		text, err := os.ReadFile(filepath.Join(root, "etc", "resolv.conf"))
		return string(text), err
	}
	return "", fmt.Errorf("pod %s: expected a running container of labtool, saw none", pod.FullName())
}

// Alike is the network with this pod's own addresses and numbers taken out, so that it can be held against another
// pod's.
func (n Network) Alike(pod *Pod) Network {
	var lines []string
	for line := range strings.Lines(string(n)) {
		lines = append(lines, anonymous(strings.Fields(line), pod.IPs))
	}
	slices.Sort(lines)
	return Network(strings.Join(lines, "\n"))
}

// anonymous takes out what differs from pod to pod: addresses, hardware addresses, interface and namespace numbers.
func anonymous(fields, own []string) string {
	for i, f := range fields {
		addr, bits, _ := strings.Cut(f, "/")
		switch {
		case slices.Contains(own, addr):
			fields[i] = "OWN/" + bits
		case strings.HasPrefix(f, "fe80::") && f != "fe80::/64":
			fields[i] = "LINK-LOCAL"
		case i > 0 && (fields[i-1] == "link/ether" || fields[i-1] == "link-netnsid"):
			fields[i] = "X"
		case strings.HasPrefix(f, "eth0@if"):
			fields[i] = "eth0@X"
		}
	}
	return strings.Join(fields, " ")
}

// Differs is nil if two networks are the same.
func Differs(what string, was, is Network) error {
	if was == is {
		return nil
	}
	var diff []string
	before, after := strings.Split(string(was), "\n"), strings.Split(string(is), "\n")
	for _, line := range before {
		if !slices.Contains(after, line) {
			diff = append(diff, "- "+line)
		}
	}
	for _, line := range after {
		if !slices.Contains(before, line) {
			diff = append(diff, "+ "+line)
		}
	}
	return fmt.Errorf("%s: expected the same interfaces, routes, rules and resolv.conf, saw\n%s", what, strings.Join(diff, "\n"))
}

// Traces is what a pod's node leaves while it is there: links of the node, network namespaces, state, devices.
type Traces struct{ Links, NetNS, State, Devices []string }

// Traces lists them all, each list sorted.
func (s *Scene) Traces(ctx context.Context) (t Traces, err error) {
	out, err := s.Lab.InNode(ctx, "ip", "-o", "link")
	if err != nil {
		return t, err
	}
	for line := range strings.Lines(out) {
		// "7: vetht1a2b@if2: <…"; the CNI's own go on with a digit, or a letter up to f, after veth
		if name, _, _ := strings.Cut(strings.Fields(line)[1], "@"); strings.HasPrefix(name, "vetht") {
			t.Links = append(t.Links, strings.TrimSuffix(name, ":"))
		}
	}
	if t.NetNS, err = s.listInNode(ctx, "/run/netns"); err != nil {
		return t, err
	}
	if t.State, err = s.listInNode(ctx, stateDir); err != nil {
		return t, err
	}
	// The process's own: a file that is there as long as it runs, and what hooks run.
	t.State = slices.DeleteFunc(t.State, func(name string) bool { return strings.HasPrefix(name, "served.json") || name == ".hook" })
	devices, err := s.Devices(ctx)
	for _, d := range devices {
		t.Devices = append(t.Devices, d.ID+" "+d.Hostname)
	}
	slices.Sort(t.Links)
	slices.Sort(t.Devices)
	return t, err
}

// stateDir is the plugin's own default.
const stateDir = "/var/lib/tailscale-nri"

// listInNode lists a directory of the node; one that is not there has nothing in it.
func (s *Scene) listInNode(ctx context.Context, dir string) ([]string, error) {
	out, err := s.Lab.InNode(ctx, "sh", "-c", `test ! -e "$1" || ls -A "$1"`, "-", dir)
	return strings.Fields(out), err
}

// Equal reports whether two lists of traces are the same.
func (t Traces) Equal(o Traces) bool { return fmt.Sprint(t) == fmt.Sprint(o) }

// String shows all lists.
func (t Traces) String() string {
	return fmt.Sprintf("links %v, network namespaces %v, state %v, devices %v", t.Links, t.NetNS, t.State, t.Devices)
}
