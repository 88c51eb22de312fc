// SPDX-License-Identifier: BSD-3-Clause

package doctor

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

	"tailscale.com/control/ts2021"
	"tailscale.com/net/netmon"
	"tailscale.com/net/tsdial"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/util/eventbus"

	"tailscale-nri/nri-plugin/internal/config"
)

// checkControl asks each control server for its key, as each node does first.
func checkControl(ctx context.Context, h *Host) []Finding {
	return h.eachWay(h.controlServers(), func(w way) []Finding { return []Finding{h.askControl(ctx, w.controlURL())} })
}

// askControl asks the control server at a URL.
func (h *Host) askControl(ctx context.Context, server string) Finding {
	at := fmt.Sprintf("%s/key?v=%d", server, tailcfg.CurrentCapabilityVersion)
	res, err := h.get(ctx, at)
	if err != nil {
		return judgeUnreachable(server, err)
	}
	defer res.Body.Close()
	var keys tailcfg.OverTLSPublicKeyResponse
	err = json.NewDecoder(http.MaxBytesReader(nil, res.Body, 1<<16)).Decode(&keys)
	if res.StatusCode != http.StatusOK || err != nil || keys.PublicKey.IsZero() {
		return fail(fmt.Sprintf("%s answers HTTP %d, and no control server's key", server, res.StatusCode), remedyNotControl)
	}
	// Where there is no https to go over to, the client does not give up by itself.
	ctx, cancel := context.WithTimeout(ctx, h.patience/2)
	defer cancel()
	if err := upgrade(ctx, server, keys.PublicKey); err != nil {
		return fail(server+" answers, and does not take the upgrade to its own protocol: "+err.Error(), remedyUpgrade)
	}
	return fine(server + " answers, and takes the upgrade to its own protocol")
}

// upgrade makes the connection that a node's client makes, with a key that is forgotten
// afterwards, and registers nothing. Reverse proxies, and those that open TLS, often
// let /key pass and not this.
func upgrade(ctx context.Context, server string, public key.MachinePublic) error {
	mon := netmon.NewStatic()
	dialer := tsdial.NewDialer(mon)
	defer dialer.Close()
	bus := eventbus.New()
	defer bus.Close()
	dialer.SetBus(bus)
	client, err := ts2021.NewClient(ts2021.ClientOpts{
		ServerURL: server, PrivKey: key.NewMachine(), ServerPubKey: public,
		Dialer: dialer, NetMon: mon, Logf: func(string, ...any) {},
	})
	if err != nil {
		return err
	}
	defer client.Close()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.Replace(server, "http://", "https://", 1)+"/", nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	return res.Body.Close() // whatever it answers, it has answered
}

func judgeUnreachable(server string, err error) Finding {
	seen := server + " cannot be reached: " + err.Error()
	switch {
	case isOfClock(err):
		return fail(seen, remedyClock)
	case strings.Contains(err.Error(), http.StatusText(http.StatusProxyAuthRequired)):
		return fail(seen, remedyProxy)
	}
	return fail(seen, RemedyUnreachable)
}

// isOfClock reports whether a certificate has expired or is not yet valid by this host's
// clock, which is mostly the clock's fault.
func isOfClock(err error) bool {
	var invalid x509.CertificateInvalidError
	return errors.As(err, &invalid) && invalid.Reason == x509.Expired
}

// Bounds of what a clock may be off. WireGuard and Noise do not mind; certificates
// and the tokens of a workload's identity do.
const (
	clockWarns = 30 * time.Second
	clockFails = 10 * time.Minute
)

// checkClock compares with the Date headers of the control servers and the APIs.
func checkClock(ctx context.Context, h *Host) []Finding {
	var servers []way
	add := func(url string) {
		if url != "" && !slices.ContainsFunc(servers, func(w way) bool { return w.cfg.LoginServer == url }) {
			servers = append(servers, way{cfg: config.Config{LoginServer: url}})
		}
	}
	for _, w := range h.ways() {
		add(w.controlURL())
		if w.cfg.AuthKey == "" {
			add(w.cfg.APIURL)
		}
	}
	return h.eachWay(servers, func(w way) []Finding { return []Finding{h.compareClock(ctx, w.controlURL())} })
}

func (h *Host) compareClock(ctx context.Context, server string) Finding {
	began := time.Now()
	res, err := h.get(ctx, server+"/")
	if err != nil {
		seen := server + " has not told the time: " + err.Error()
		if isOfClock(err) {
			return fail(seen, remedyClock)
		}
		return unknown(seen)
	}
	res.Body.Close()
	at, err := http.ParseTime(res.Header.Get("Date"))
	if err != nil {
		return unknown(server + " answers without a Date")
	}
	off := began.Add(time.Since(began) / 2).Sub(at).Round(time.Second)
	seen := fmt.Sprintf("this host's clock is %v ahead of that of %s", off, server)
	if off < 0 {
		seen = fmt.Sprintf("this host's clock is %v behind that of %s", -off, server)
	}
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
func checkProxy(ctx context.Context, h *Host) []Finding {
	hosts := config.ProxyHosts(h.cfg.Proxy)
	if hosts == "" {
		return []Finding{fine("none is set")}
	}
	var findings []Finding
	for host := range strings.SplitSeq(hosts, ",") {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", withPort(host, h.cfg.Proxy.HTTPSProxy))
		if err != nil {
			findings = append(findings, fail("the proxy "+host+" cannot be reached: "+err.Error(), remedyProxy))
			continue
		}
		conn.Close()
		findings = append(findings, fine("the proxy "+host+" takes connections; NO_PROXY is "+fmt.Sprintf("%q", h.cfg.Proxy.NoProxy)))
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
