// SPDX-License-Identifier: BSD-3-Clause

package soak

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"tailscale-nri/k3d/lab"
)

func itoa(n int) string { return strconv.Itoa(n) }

func TestSurplus(t *testing.T) {
	if more := surplus([]string{"a", "b", "b"}, []string{"b", "c", "b", "b", "a"}); !slices.Equal(more, []string{"c", "b"}) {
		t.Errorf("surplus: %q", more)
	}
}

// TestWhose: a trace is of the pod whose it is, and not of one with a similar name.
func TestWhose(t *testing.T) {
	var c history
	for _, n := range []string{"7", "75"} {
		r := c.add("cycle "+n, "c"+n, "uid-soak-"+n, "soak-c"+n)
		c.sandbox(r, lab.Pod{ID: n + "0123456789abcdef", NetNS: "/var/run/netns/cni-" + n})
		c.device(r.sandboxes[0], "DEVICE"+n)
	}
	for trace, want := range map[string]string{
		"uid-soak-75":              "pod default/c75 ",
		"uid-soak-75.damaged":      "pod default/c75 ",
		"uid-soak-7":               "pod default/c7 ",
		"DEVICE7 soak-c7":          "pod default/c7 ",
		"ANOTHER soak-c75":         "pod default/c75 ",
		"vetht750123456":           "pod default/c75 ",
		"vetht701234567":           "pod default/c7 ",
		"cni-75":                   "pod default/c75 ",
		"/run/netns/cni-7":         "pod default/c7 ",
		"/run/x/70123456789abcdef": "pod default/c7 ",
		"vethtabc":                 "a sandbox that containerd began",
	} {
		if is := c.whose(trace); !strings.HasPrefix(is, want) {
			t.Errorf("%q is of %s, want %s", trace, is, want)
		}
	}
}

func TestCensusAbove(t *testing.T) {
	base := processStats{map[string]int{"a": 40}, map[string]int{"socket:[]": 10}, 9, 100 << 20}
	same := processStats{map[string]int{"a": 50}, map[string]int{"socket:[]": 20}, 20, 250 << 20}
	if more := same.above(base); len(more) > 0 {
		t.Errorf("within the slack: %q", more)
	}
	much := processStats{map[string]int{"a": 40, "b": 17}, map[string]int{"socket:[]": 10, "/dev/net": 13}, 26, 261 << 20}
	more := strings.Join(much.above(base), "\n")
	for _, want := range []string{"57 goroutines", "+17 b", "23 descriptors", "+13 /dev/net", "26 threads", "261 MiB"} {
		if !strings.Contains(more, want) {
			t.Errorf("expected %q, saw\n%s", want, more)
		}
	}
}
