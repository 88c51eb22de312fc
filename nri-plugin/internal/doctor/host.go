// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"context"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"tailscale.com/ipn"
	"tailscale.com/net/netns"

	"tailscale-nri/engine"
	"tailscale-nri/engine/tailnet"
	"tailscale-nri/nri-plugin/internal/config"
	"tailscale-nri/nri-plugin/internal/status"
	"tailscale-nri/nri-plugin/internal/statussocket"
)

// examination bounds the time of a check. All run at the same time.
const examination = 16 * time.Second

// Host is the host as the doctor looks at it.
type Host struct {
	getenv   func(string) string
	cfg      config.Config // as far as it can be used
	cfgErr   error
	root     string // of the file system that /proc and /run are read from
	patience time.Duration
	limit    int // of devices; 0 is none

	release    func() string // of the kernel
	inspect    func() (engine.HostView, error)
	tryKernel  func() []engine.Trial
	transport  http.RoundTripper // to the API and the control plane
	derpMapAt  string            // where Tailscale's own DERP map is
	secondLook time.Duration     // what is found once may be about to go
}

// NewHost returns the host that this process runs on. deviceLimit is how many devices the
// cluster may have, 0 for any number.
func NewHost(getenv func(string) string, deviceLimit int) *Host {
	cfg, err := config.Read(getenv)
	config.UseProxy(cfg.Proxy)
	netns.SetEnabled(false) // as the engine has it: no mark on sockets that leads them past the host's routes
	return &Host{
		getenv: getenv, cfg: cfg, cfgErr: err, root: "/", patience: examination, limit: deviceLimit,
		release: KernelRelease, inspect: engine.InspectHost, tryKernel: engine.TryKernel,
		transport: config.APITransport(cfg.Proxy), derpMapAt: ipn.DefaultControlURL + "/derpmap/default",
		secondLook: 2 * time.Second,
	}
}

// KernelRelease returns the kernel's release, "" if it cannot be read.
func KernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// read returns the text of a file below root.
func (h *Host) read(elems ...string) (string, error) {
	data, err := os.ReadFile(h.path(elems...))
	return strings.TrimSpace(string(data)), err
}

func (h *Host) path(elems ...string) string {
	return filepath.Join(append([]string{h.root}, elems...)...)
}

// way is a way into a tailnet.
type way struct {
	profile string // "" is the default
	cfg     config.Config
}

// ways are all ways into a tailnet, the default first.
func (h *Host) ways() []way {
	all := []way{{"", h.cfg}}
	for _, name := range slices.Sorted(maps.Keys(h.cfg.Profiles)) {
		all = append(all, way{name, h.cfg.Profiles[name]})
	}
	return all
}

// eachWay looks at each way into a tailnet, side by side. What it finds of a profile
// says so.
func (h *Host) eachWay(ways []way, look func(way) []Finding) (findings []Finding) {
	each := make([][]Finding, len(ways))
	var wg sync.WaitGroup
	for i, w := range ways {
		wg.Go(func() { each[i] = look(w) })
	}
	wg.Wait()
	for i, w := range ways {
		for _, f := range each[i] {
			if w.profile != "" {
				f.Seen = "in the tailnet of profile " + w.profile + ": " + f.Seen
			}
			findings = append(findings, f)
		}
	}
	return findings
}

// controlServers are the ways of which each has another control server.
func (h *Host) controlServers() (ways []way) {
	for _, w := range h.ways() {
		if !slices.ContainsFunc(ways, func(o way) bool { return o.controlURL() == w.controlURL() }) {
			ways = append(ways, w)
		}
	}
	return ways
}

// oauth returns the OAuth client of a way into a tailnet, nil if there is none. What it
// mints is short-lived, and it does not try for long.
func (h *Host) oauth(c config.Config) *tailnet.OAuth {
	if h.cfgErr != nil || c.AuthKey != "" {
		return nil
	}
	o, err := tailnet.NewOAuth(tailnet.OAuthConfig{
		ClientID: c.OAuthID, ClientSecret: c.OAuthSecret, IDTokenFile: c.IDTokenFile, BaseURL: c.APIURL, ControlURL: c.LoginServer,
		Cluster: c.Cluster, Tags: c.Tags, AuthKeyTTL: min(c.AuthKeyTTL, time.Minute), Transport: h.transport, Names: config.TailnetNames,
		Calls: tailnet.CallLimits{Attempts: 2, CallTimeout: h.patience / 2},
	})
	if err != nil {
		return nil // config.Read has checked all of it
	}
	return o
}

// controlURL is the login server's, without a trailing slash.
func (w way) controlURL() string {
	if w.cfg.LoginServer != "" {
		return w.cfg.LoginServer
	}
	return ipn.DefaultControlURL
}

// nodes returns the nodes that the running plugin serves, and the pods that should have one;
// ok is false if none answers.
func (h *Host) nodes(ctx context.Context) (nodes []status.Node, ok bool) {
	r, err := statussocket.AskReport(ctx, h.cfg.StatusSocket)
	return r.Nodes, err == nil
}

// get makes one request, which is not followed elsewhere.
func (h *Host) get(ctx context.Context, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	client := &http.Client{
		Transport:     h.transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return client.Do(req)
}
