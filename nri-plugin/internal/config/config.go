// SPDX-License-Identifier: BSD-3-Clause

package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/errtext"
	"tailscale-nri/nri-plugin/internal/podspec"
	"tailscale-nri/nri-plugin/internal/settings"
)

// Config is the configuration of the process. Zero values are as the
// variables' defaults say in settings, except where noted.
type Config struct {
	OAuthID      string // with one of the next two, or "" and AuthKey
	OAuthSecret  string
	IDTokenFile  string // absolute
	AuthKey      string
	LoginServer  string // "" is Tailscale's own
	APIURL       string
	AuthKeyTTL   time.Duration
	Profiles     map[string]Config // further ways into a tailnet, by name: the fields above, Tags and Cluster
	Proxy        httpproxy.Config
	Cluster      string          // a DNS label of at most maxCluster characters
	Tags         []string        // "tag:…"; empty with AuthKey unless TS_TAGS is set
	SweepAfter   time.Duration   // 0 never
	NoLocal      bool            // see engine.Config.NoLocalDelivery
	Ranges       []netip.Prefix  // see engine.Config.ClusterRanges; the policy's are among them
	Handlers     []string        // known runtime handlers
	PolicyFile   string          // absolute, "" is none
	Policy       *podspec.Policy // that the file holds; nil is none, or one that cannot be used
	StateSecrets bool            // see engine.Config.Identities
	KubeStatus   bool            // see kubeStatus
	StateDir     string          // absolute
	StatusSocket string          // absolute
	MetricsAddr  string          // host:port, "" serves none
	NRISocket    string          // absolute
	PodUID       string          // "" is not checked
	NodeName     string          // of the Kubernetes node; "" is not known
	LogLevel     slog.Level
	LogJSON      bool
	Dir          string // that variables are also read from, "" is none
}

const (
	// maxCluster leaves room for the namespace and the pod in a hostname.
	maxCluster = 32
	// The API takes keys of up to 90 days; one of a few seconds may expire
	// before the node has used it.
	MinKeyTTL, MaxKeyTTL = 10 * time.Second, 90 * 24 * time.Hour
	// A host that is away for less comes back with its pods.
	minSweepAfter = time.Hour
)

// Read reads and checks the environment, and the directory that it names.
// Its error has one line for each bad value, with key, value and remedy; values
// that may be secret are left out.
func Read(getenv func(string) string) (Config, error) {
	_, c, err := Load(getenv)
	return c, err
}

// Load is Read, with what was read. The directory may change at any
// time, so that both are of one reading. The policy is a file of its own, and read
// however bad the variables are.
func Load(getenv func(string) string) (Values, Config, error) {
	v, dirErr := gather(getenv)
	c, err := parseConfig(v)
	if errors.Is(dirErr, errNoConfigDir) {
		return v, c, dirErr
	}
	var policyErr error
	if c.Policy, policyErr = podspec.ReadPolicy(c.PolicyFile); c.Policy != nil {
		c.Ranges = slices.Concat(c.Ranges, c.Policy.Ranges)
	}
	return v, c, errors.Join(dirErr, err, checkPolicyKey(c), policyErr)
}

// parseConfig checks the values.
func parseConfig(v Values) (Config, error) {
	r := newReader(v.Get)
	c := Config{
		Proxy:        r.proxies(),
		Cluster:      r.cluster(settings.ClusterName),
		SweepAfter:   r.sweepAfter(settings.SweepAfter),
		NoLocal:      r.oneOf(settings.LocalDelivery, "true", "false") == "false",
		Ranges:       r.ranges(settings.ClusterRanges),
		Handlers:     r.handlers(settings.RuntimeHandlers),
		PolicyFile:   r.optionalPath(settings.PolicyFile),
		StateSecrets: r.oneOf(settings.StateSecrets, "true", "false") == "true",
		KubeStatus:   r.oneOf(settings.KubeStatus, "true", "false") == "true",
		StateDir:     r.path(settings.StateDir),
		StatusSocket: r.path(settings.StatusSocket),
		MetricsAddr:  r.hostPort(settings.MetricsAddr),
		NRISocket:    r.path(settings.NRISocket),
		PodUID:       r.text(settings.PodUID),
		NodeName:     r.text(settings.NodeName),
		LogLevel:     r.level(settings.LogLevel),
		LogJSON:      r.oneOf(settings.LogFormat, "text", "json") == "json",
		Dir:          r.text(settings.ConfigDir),
	}
	r.errs = append(r.errs, r.tailnet(&c))
	var errs []error
	c.Profiles, errs = parseProfiles(v, c)
	return c, errors.Join(append(r.errs, errs...)...)
}

// reader reads variables and collects what is wrong with them.
type reader struct {
	getenv   func(string) string
	prefix   string // of all keys, a profile's
	standard map[string]string
	errs     []error
}

func newReader(getenv func(string) string) *reader {
	r := &reader{getenv: getenv, standard: make(map[string]string)}
	for _, s := range settings.All() {
		r.standard[s.Key] = s.Default
	}
	return r
}

// StatusSocket is the one value that commands need to ask a process, and that a
// process needs to answer them, however bad the others are.
func StatusSocket(getenv func(string) string) (string, error) {
	r := newReader(func(key string) string { return set(getenv, key) })
	return r.path(settings.StatusSocket), errors.Join(r.errs...)
}

// raw returns the variable as set.
func (r *reader) raw(key string) string { return r.getenv(r.prefix + key) }

// text returns the variable or its default.
func (r *reader) text(key string) string {
	if v := r.raw(key); v != "" {
		return v
	}
	return r.standard[key]
}

func (r *reader) bad(key, value, remedy string) {
	r.errs = append(r.errs, fmt.Errorf("%s is %q: %s", r.prefix+key, errtext.Clip(value), remedy))
}

// url reads a base URL. It may hold a password by mistake, so it is not shown.
func (r *reader) url(key string) string {
	v := strings.TrimRight(r.text(key), "/")
	if v == "" {
		return ""
	}
	u, err := url.Parse(v)
	switch {
	case err != nil, u.Scheme != "http" && u.Scheme != "https", u.Host == "", u.User != nil, u.RawQuery != "", u.Fragment != "":
		r.errs = append(r.errs, fmt.Errorf("%s is not a plain URL: write it as https://host, without user, query or fragment", r.prefix+key))
	}
	return v
}

func (r *reader) keyTTL(key string) time.Duration {
	v := r.text(key)
	d, err := time.ParseDuration(v)
	if err != nil || d < MinKeyTTL || d > MaxKeyTTL {
		r.bad(key, v, fmt.Sprintf("write a duration such as 5m, from %v to %.0fh", MinKeyTTL, MaxKeyTTL.Hours()))
	}
	return d
}

func (r *reader) sweepAfter(key string) time.Duration {
	v := r.text(key)
	d, err := time.ParseDuration(v)
	if err != nil || d != 0 && d < minSweepAfter {
		r.bad(key, v, fmt.Sprintf("write a duration such as 168h, %v at least, or 0 to keep all", minSweepAfter))
	}
	return d
}

func (r *reader) cluster(key string) string {
	v := r.text(key)
	if err := checkCluster(v); err != nil {
		r.bad(key, v, err.Error())
	}
	return v
}

func (r *reader) tags(key string) []string {
	v := r.text(key)
	tags, err := podspec.ParseTags(v)
	if err != nil {
		r.bad(key, v, err.Error())
	}
	return tags
}

func (r *reader) handlers(key string) []string {
	v := r.text(key)
	handlers, err := podspec.ParseHandlers(v)
	if err != nil {
		r.bad(key, v, err.Error())
	}
	return handlers
}

func (r *reader) path(key string) string {
	v := r.text(key)
	if !filepath.IsAbs(v) {
		r.bad(key, v, "write an absolute path")
	}
	return filepath.Clean(v)
}

// optionalPath is path, or "" where it is not set.
func (r *reader) optionalPath(key string) string {
	if r.text(key) == "" {
		return ""
	}
	return r.path(key)
}

func (r *reader) level(key string) slog.Level {
	v := r.oneOf(key, "trace", "debug", "info", "warn", "error")
	if v == "trace" {
		return engine.LevelTrace
	}
	var l slog.Level
	if err := l.UnmarshalText([]byte(v)); err != nil {
		return slog.LevelInfo
	}
	return l
}

func (r *reader) oneOf(key string, allowed ...string) string {
	v := strings.ToLower(r.text(key))
	if !slices.Contains(allowed, v) {
		r.bad(key, v, "write one of "+strings.Join(allowed, ", "))
	}
	return v
}

func checkCluster(s string) error {
	if len(s) > maxCluster {
		return fmt.Errorf("it has %d characters, shorten it to %d", len(s), maxCluster)
	}
	return podspec.CheckLabel(s)
}

// hostPort reads an address to listen on, "" for none.
func (r *reader) hostPort(key string) string {
	v := r.text(key)
	if v == "" {
		return ""
	}
	host, port, err := net.SplitHostPort(v)
	if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || n == 0 || !isAddr(host) {
		r.bad(key, v, "write an address of this host and a port, 127.0.0.1:9464; :9464 is all of its addresses")
		return ""
	}
	return v
}

// isAddr reports whether it is an IP address, or none.
func isAddr(host string) bool {
	_, err := netip.ParseAddr(host)
	return host == "" || err == nil
}
