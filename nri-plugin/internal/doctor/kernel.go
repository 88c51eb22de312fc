// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/privileges"
)

// checkKernel looks at the release.
func checkKernel(_ context.Context, h *Host) []Finding {
	release := h.release()
	var major, minor int
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n != 2 {
		return []Finding{unknown(fmt.Sprintf("release %q is not a number", release))}
	}
	before := func(ma, mi int) bool { return major < ma || major == ma && minor < mi }
	seen := "Linux " + release
	switch {
	case before(4, 20):
		return []Finding{fail(seen, remedyOldKernel)}
	case before(6, 2):
		seen += "; from 6.2 on large UDP frames cross ts0 whole, from 6.9 on also between pods of this host"
	case before(6, 9):
		seen += "; from 6.9 on large UDP frames go between pods of this host whole"
	}
	return []Finding{fine(seen)}
}

// checkFeatures tries what is done for a pod.
func checkFeatures(_ context.Context, h *Host) []Finding {
	var (
		findings []Finding
		works    []string
	)
	for _, t := range h.tryKernel() {
		if t.Err == nil {
			works = append(works, t.Name)
			continue
		}
		if _, err := os.Stat(h.path(ipv6File)); t.Name == engine.TrialRules6 && errors.Is(err, os.ErrNotExist) {
			continue // without IPv6 there is no rule for it: checkIPv6 says so
		}
		findings = append(findings, judgeTrial(t))
	}
	if len(works) > 0 {
		findings = append([]Finding{fine(strings.Join(works, ", "))}, findings...)
	}
	return findings
}

func judgeTrial(t engine.Trial) Finding {
	seen := t.Name + ": " + t.Err.Error()
	switch t.Name {
	case engine.TrialNamespace:
		return fail(seen, RemedyNamespaces)
	case engine.TrialSocket:
		return fail(seen, remedyPacket)
	case engine.TrialRules, engine.TrialRules6:
		return fail(seen, remedyPolicyRouting)
	case engine.TrialNAT:
		return warn(seen, remedyNAT)
	case engine.TrialGSO, engine.TrialGRO:
		return warn(seen, remedyOffload)
	}
	return fail(seen, remedyModules)
}

// ipv6File is there where the kernel runs with IPv6.
const ipv6File = "proc/net/if_inet6"

// checkIPv6 looks whether the host has it. A pod's own switch may differ.
func checkIPv6(_ context.Context, h *Host) []Finding {
	if _, err := os.Stat(h.path(ipv6File)); errors.Is(err, os.ErrNotExist) {
		return []Finding{warn("the kernel runs without IPv6", remedyIPv6)}
	}
	if off, err := h.read("proc/sys/net/ipv6/conf/all/disable_ipv6"); err == nil && off == "1" {
		return []Finding{warn("net.ipv6.conf.all.disable_ipv6 is 1 on the host", remedyIPv6)}
	}
	return []Finding{fine("enabled on the host")}
}

// checkCapabilities looks at this process: in the plugin's pod they are the plugin's.
func checkCapabilities(_ context.Context, h *Host) []Finding {
	status, err := h.read("proc/self/status")
	if err != nil {
		return []Finding{unknown(err.Error())}
	}
	missing, err := privileges.Missing(status)
	switch {
	case err != nil:
		return []Finding{unknown(err.Error())}
	case len(missing) > 0:
		return []Finding{fail("missing capabilities "+strings.Join(missing, ", "), RemedyCapabilities)}
	}
	var have []string
	for _, c := range privileges.Needed {
		have = append(have, c.Name)
	}
	return []Finding{fine(strings.Join(have, ", "))}
}
