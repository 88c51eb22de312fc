// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"tailscale.com/tailcfg"

	"tailscale-nri/engine"
	"tailscale-nri/engine/tailnet"
)

// mostTagSets bounds how many keys are minted for a look.
const mostTagSets = 5

// checkMinting has a key minted for each set of tags that is known, and deleted.
func checkMinting(ctx context.Context, m *machine) []finding {
	if m.cfgErr != nil {
		return []finding{unknown("not tried: the configuration cannot be used")}
	}
	o := m.oauth()
	if o == nil {
		return []finding{judgeAuthKey(ctx, m)}
	}
	var findings []finding
	for _, tags := range m.tagSets() {
		list := strings.Join(tags, ", ")
		err := o.TryKey(ctx, tags)
		var known *tailnet.Error
		switch {
		case err == nil:
			findings = append(findings, fine("a key for "+list+" was minted, and deleted unused"))
		case errors.As(err, &known) && strings.HasPrefix(known.Op, "deleting"):
			findings = append(findings, warn("a key for "+list+" was minted: "+err.Error(), remedyKeyLeft))
		case errors.As(err, &known) && !known.Temporary:
			findings = append(findings, fail(err.Error(), remedyCredentials))
		default:
			findings = append(findings, fail(err.Error()+cause(err), remedyUnreachable))
		}
	}
	return findings
}

// cause is what an error of the tailnet leaves out, since it differs from time to time.
func cause(err error) string {
	var known *tailnet.Error
	if !errors.As(err, &known) || known.Err == nil {
		return ""
	}
	return " (" + known.Err.Error() + ")"
}

// tagSets are those of the configuration, and of the pods that are served.
func (m *machine) tagSets() [][]string {
	sets := [][]string{m.cfg.Tags}
	state, _ := engine.InspectState(m.cfg.StateDir) // checkState says what is wrong with it
	for _, pod := range state.Pods {
		tags := slices.Sorted(slices.Values(pod.Tags))
		known := func(s []string) bool { return slices.Equal(slices.Sorted(slices.Values(s)), tags) }
		if len(tags) > 0 && !slices.ContainsFunc(sets, known) && len(sets) < mostTagSets {
			sets = append(sets, tags)
		}
	}
	return sets
}

// judgeAuthKey goes by what became of the pods: a trial would make a device.
func judgeAuthKey(ctx context.Context, m *machine) finding {
	nodes, _ := m.nodes(ctx)
	running := 0
	for _, n := range nodes {
		if strings.Contains(n.Reason, envAuthKey) {
			return fail(n.Namespace+"/"+n.Pod+": "+n.Reason, remedyAuthKey)
		}
		if n.State == engine.Running {
			running++
		}
	}
	if tailnet.IsTailscales(m.cfg.LoginServer) && !strings.HasPrefix(m.cfg.AuthKey, "tskey-auth-") {
		return fail("TS_AUTHKEY does not begin with tskey-auth-, as Tailscale's auth keys do", remedyAuthKey)
	}
	if running > 0 {
		return fine(fmt.Sprintf("%d pods here came in with the auth key, or did so once; it is not tried", running))
	}
	return unknown("an auth key is not tried, since that would make a device; the first pod shows whether it is good")
}

// checkControl asks the control server for its key, as each node does first.
func checkControl(ctx context.Context, m *machine) []finding {
	at := fmt.Sprintf("%s/key?v=%d", m.controlURL(), tailcfg.CurrentCapabilityVersion)
	res, err := m.get(ctx, at)
	if err != nil {
		return []finding{judgeUnreachable(m.controlURL(), err)}
	}
	defer res.Body.Close()
	var keys tailcfg.OverTLSPublicKeyResponse
	err = json.NewDecoder(http.MaxBytesReader(nil, res.Body, 1<<16)).Decode(&keys)
	if res.StatusCode != http.StatusOK || err != nil || keys.PublicKey.IsZero() {
		return []finding{fail(fmt.Sprintf("%s answers HTTP %d, and no control server's key", m.controlURL(), res.StatusCode), remedyNotControl)}
	}
	return []finding{fine(m.controlURL() + " answers")}
}

func judgeUnreachable(server string, err error) finding {
	seen := server + " cannot be reached: " + err.Error()
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fail(seen, remedyClock)
	case strings.Contains(err.Error(), http.StatusText(http.StatusProxyAuthRequired)):
		return fail(seen, remedyProxy)
	}
	return fail(seen, remedyUnreachable)
}

// Bounds of what a clock may be off. WireGuard and Noise do not mind; certificates
// and the tokens of a workload's identity do.
const (
	clockWarns = 30 * time.Second
	clockFails = 10 * time.Minute
)

// checkClock compares with the Date headers of the control server and the API.
func checkClock(ctx context.Context, m *machine) []finding {
	servers := []string{m.controlURL()}
	if m.cfg.AuthKey == "" && m.cfg.APIURL != "" {
		servers = append(servers, m.cfg.APIURL)
	}
	findings := make([]finding, 0, len(servers))
	for _, server := range slices.Compact(servers) {
		findings = append(findings, m.compareClock(ctx, server))
	}
	return findings
}

func (m *machine) compareClock(ctx context.Context, server string) finding {
	began := time.Now()
	res, err := m.get(ctx, server+"/")
	if err != nil {
		return unknown(server + " has not told the time: " + err.Error())
	}
	res.Body.Close()
	at, err := http.ParseTime(res.Header.Get("Date"))
	if err != nil {
		return unknown(server + " answers without a Date")
	}
	off := began.Add(time.Since(began) / 2).Sub(at).Round(time.Second)
	seen := fmt.Sprintf("this host's clock is %v off that of %s", off, server)
	switch {
	case off.Abs() >= clockFails:
		return fail(seen, remedyClock)
	case off.Abs() >= clockWarns:
		return warn(seen, remedyClock)
	case off.Abs() < 2*time.Second: // the header counts seconds, and has travelled
		seen = "as that of " + server
	}
	return fine(seen)
}

// checkProxy connects to the proxies that are set.
func checkProxy(ctx context.Context, m *machine) []finding {
	hosts := proxyHosts(m.cfg.Proxy)
	if hosts == "" {
		return []finding{fine("none is set")}
	}
	var findings []finding
	for host := range strings.SplitSeq(hosts, ",") {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", withPort(host, m.cfg.Proxy.HTTPSProxy))
		if err != nil {
			findings = append(findings, fail("the proxy "+host+" cannot be reached: "+err.Error(), remedyProxy))
			continue
		}
		conn.Close()
		findings = append(findings, fine("the proxy "+host+" takes connections; NO_PROXY is "+fmt.Sprintf("%q", m.cfg.Proxy.NoProxy)))
	}
	return findings
}

// withPort is a proxy's address as net/http dials it.
func withPort(host, proxy string) string {
	if _, _, err := net.SplitHostPort(host); err == nil {
		return host
	}
	if u, err := url.Parse(proxy); err == nil && u.Host == host && u.Scheme == "https" {
		return net.JoinHostPort(strings.Trim(host, "[]"), "443")
	}
	return net.JoinHostPort(strings.Trim(host, "[]"), "80")
}

// checkDevices counts this cluster's devices.
func checkDevices(ctx context.Context, m *machine) []finding {
	o := m.oauth()
	switch {
	case m.cfgErr != nil:
		return []finding{unknown("not counted: the configuration cannot be used")}
	case o == nil:
		return []finding{unknown("not counted: with an auth key nobody can list devices")}
	}
	devices, err := o.Devices(ctx)
	var known *tailnet.Error
	switch {
	case errors.As(err, &known) && !known.Temporary:
		return []finding{fail(err.Error(), remedyCredentials)}
	case err != nil:
		return []finding{unknown("not counted: " + err.Error())}
	}
	ours := 0
	for _, d := range devices {
		if is, _ := o.Ours(d); is {
			ours++
		}
	}
	seen := fmt.Sprintf("%d devices of this cluster, %d in the tailnet", ours, len(devices))
	if m.limit == 0 {
		return []finding{fine(seen)}
	}
	seen += fmt.Sprintf(", %d allowed", m.limit)
	switch {
	case ours >= m.limit:
		return []finding{fail(seen, remedyDevices)}
	case ours*10 >= m.limit*9:
		return []finding{warn(seen, remedyDevices)}
	}
	return []finding{fine(seen)}
}
