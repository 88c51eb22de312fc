// SPDX-License-Identifier: BSD-3-Clause

package main

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
func checkKernel(_ context.Context, m *machine) []finding {
	release := m.release()
	var major, minor int
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n != 2 {
		return []finding{unknown(fmt.Sprintf("release %q is no number", release))}
	}
	before := func(ma, mi int) bool { return major < ma || major == ma && minor < mi }
	seen := "Linux " + release
	switch {
	case before(4, 20):
		return []finding{fail(seen, remedyOldKernel)}
	case before(6, 2):
		seen += "; from 6.2 on large UDP frames cross ts0 whole, from 6.9 on also between pods of this host"
	case before(6, 9):
		seen += "; from 6.9 on large UDP frames go between pods of this host whole"
	}
	return []finding{fine(seen)}
}

// checkFeatures tries what is done for a pod.
func checkFeatures(_ context.Context, m *machine) []finding {
	var (
		findings []finding
		works    []string
	)
	for _, t := range m.tryKernel() {
		if t.Err == nil {
			works = append(works, t.Name)
			continue
		}
		if _, err := os.Stat(m.path(ipv6File)); t.Name == engine.TrialRules6 && errors.Is(err, os.ErrNotExist) {
			continue // without IPv6 there is no rule for it: checkIPv6 says so
		}
		findings = append(findings, judgeTrial(t))
	}
	if len(works) > 0 {
		findings = append([]finding{fine(strings.Join(works, ", "))}, findings...)
	}
	return findings
}

func judgeTrial(t engine.Trial) finding {
	seen := t.Name + ": " + t.Err.Error()
	switch t.Name {
	case engine.TrialNamespace:
		return fail(seen, remedyNamespaces)
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
func checkIPv6(_ context.Context, m *machine) []finding {
	if _, err := os.Stat(m.path(ipv6File)); errors.Is(err, os.ErrNotExist) {
		return []finding{warn("the kernel runs without IPv6", remedyIPv6)}
	}
	if off, err := m.read("proc/sys/net/ipv6/conf/all/disable_ipv6"); err == nil && off == "1" {
		return []finding{warn("net.ipv6.conf.all.disable_ipv6 is 1 on the host", remedyIPv6)}
	}
	return []finding{fine("enabled on the host")}
}

// checkCapabilities looks at this process: in the plugin's pod they are the plugin's.
func checkCapabilities(_ context.Context, m *machine) []finding {
	status, err := m.read("proc/self/status")
	if err != nil {
		return []finding{unknown(err.Error())}
	}
	missing, err := privileges.Missing(status)
	switch {
	case err != nil:
		return []finding{unknown(err.Error())}
	case len(missing) > 0:
		return []finding{fail("missing capabilities "+strings.Join(missing, ", "), remedyCapabilities)}
	}
	var have []string
	for _, c := range privileges.Needed {
		have = append(have, c.Name)
	}
	return []finding{fine(strings.Join(have, ", "))}
}
