// SPDX-License-Identifier: BSD-3-Clause

package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/internal/wait"
)

const (
	// patience bounds what must happen in the end. It is not an expectation.
	patience = 5 * time.Minute
	// pollInterval is how often a plugin is asked for its status, by one goroutine for all that wait: twenty of them
	// would be a load of their own.
	pollInterval = 5 * time.Millisecond

	podTag = "tag:k8s-pod"
)

// tailnet is a lab with a control plane.
type tailnet struct {
	lab   *lab.Lab
	plane *lab.ControlPlane
	peers int // started so far
}

// onTailnet runs fn on a new lab without nodes.
func onTailnet(ctx context.Context, cfg lab.Config, fn func(*tailnet) error) (err error) {
	cfg.Bare = true
	running, err := lab.Up(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, running.Down()) }()
	plane, err := running.StartControl(ctx)
	if err != nil {
		return err
	}
	return fn(&tailnet{lab: running, plane: plane})
}

// host is a node of the lab with the plugin registered.
type host struct {
	*lab.Node
	plugin *lab.Process
	asks   []string // annotations that its pods have, "true" each
	client http.Client
	nodes  wait.Latest[map[string]node] // by sandbox
}

// node is what the plugin says of a pod's node.
type node struct {
	SandboxID string        `json:"sandboxID"`
	State     string        `json:"state"`
	Reason    string        `json:"reason"`
	Addresses []netip.Addr  `json:"addresses"`
	ReadyIn   time.Duration `json:"readyIn"`
}

// addHost makes the lab's node of that number and starts the plugin there, with these settings added.
func (t *tailnet) addHost(ctx context.Context, number int, env ...string) (*host, error) {
	made, err := t.lab.AddNode(ctx, lab.NodeConfig{Name: fmt.Sprintf("host%d", number), Number: number})
	if err != nil {
		return nil, err
	}
	h := &host{Node: made}
	h.client.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", h.Path("run", "tailscale-nri", "status.sock"))
	}}
	h.plugin, err = h.StartPlugin(append([]string{
		"TS_AUTHKEY=", "TS_ID_TOKEN_FILE=", "TS_CONFIG_DIR=", "TS_STATE_DIR=", "TS_STATUS_SOCKET=", "NRI_SOCKET=",
		"POD_UID=", "HTTPS_PROXY=", "HTTP_PROXY=", "https_proxy=", "http_proxy=",
		"AUTH_KEY_TTL=", "CLUSTER_NAME=bench", "TS_TAGS=" + podTag, "LOG_LEVEL=debug", "LOG_FORMAT=json",
		"TS_OAUTH_CLIENT_ID=" + t.plane.OAuthClientID, "TS_OAUTH_CLIENT_SECRET=" + t.plane.OAuthClientSecret,
		"TS_LOGIN_SERVER=" + t.plane.ControlURL, "TS_API_URL=" + t.plane.APIURL, "TS_METRICS_ADDR=",
	}, env...))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return h, h.plugin.Await(ctx, func(context.Context) error {
		log, err := h.log()
		if err == nil && !strings.Contains(log, "registered with the container runtime") {
			err = errors.New("the plugin has not registered")
		}
		return err
	})
}

// pids are the plugin's processes.
func (h *host) pids() []int {
	return slices.Compact([]int{h.plugin.PID(), h.plugin.Serving()})
}

// log is all that the plugin has written.
func (h *host) log() (string, error) {
	log, err := os.ReadFile(h.plugin.LogPath())
	if err != nil {
		return "", fmt.Errorf("reading the plugin's log: %w", err)
	}
	return string(log), nil
}

// watch asks for the status of all nodes until done is called.
func (h *host) watch(ctx context.Context) (done func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for wait.Pause(ctx, pollInterval) == nil {
			if nodes, err := h.status(ctx); err == nil {
				h.nodes.Set(nodes)
			}
		}
	}()
	return func() { cancel(); <-ended }
}

func (h *host) status(ctx context.Context) (map[string]node, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://plugin/status", nil)
	if err != nil {
		return nil, err
	}
	res, err := h.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("asking the plugin for its status: %w", err)
	}
	defer res.Body.Close()
	var nodes []node
	if err := json.NewDecoder(res.Body).Decode(&nodes); err != nil {
		return nil, fmt.Errorf("reading the plugin's status: %w", err)
	}
	byID := make(map[string]node)
	for _, n := range nodes {
		byID[n.SandboxID] = n
	}
	return byID, nil
}

// until returns when check finds nothing wrong with what watch sees from now on.
func (h *host) until(ctx context.Context, check func(map[string]node) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return h.nodes.Until(ctx, check)
}

// pod is one that is in the tailnet.
type pod struct {
	place
	id      string
	node    node
	criTook time.Duration // of the RunPodSandbox call
	made    time.Time     // when that call had returned
}

// join runs a pod and waits for its node, which takes a watch.
func (h *host) join(ctx context.Context, name string) (*pod, error) {
	annotations := map[string]string{"tailscale.com/enabled": "true"}
	for _, key := range h.asks {
		annotations[key] = "true"
	}
	begin := time.Now()
	id, err := h.CRI().RunPod(ctx, lab.PodSpec{Name: name, UID: h.Name + "-" + name, Annotations: annotations})
	if err != nil {
		return nil, err
	}
	p := &pod{id: id, made: time.Now(), criTook: time.Since(begin)}
	err = h.until(ctx, func(nodes map[string]node) error {
		if p.node = nodes[id]; p.node.State != "Running" || len(p.node.Addresses) == 0 {
			return fmt.Errorf("expected the node of pod %s to run, saw %s: %s", name, p.node.State, p.node.Reason)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(h.asks) > 0 { // a pod's names are resolved from its first container on
		if _, err := h.CRI().RunContainer(ctx, id, lab.ContainerSpec{Name: "main", Args: []string{"sleep"}}); err != nil {
			return nil, err
		}
	}
	status, err := h.CRI().PodStatus(ctx, id)
	if err != nil {
		return nil, err
	}
	p.place = place{addrs: p.node.Addresses, command: func(ctx context.Context, args ...string) *exec.Cmd {
		return h.Command(ctx, "nsenter", append([]string{"--net=" + status.NetNS, "--"}, args...)...)
	}}
	return p, nil
}

// joinAll runs n pods, some of them at a time.
func (h *host) joinAll(ctx context.Context, first, n int) error {
	defer h.watch(ctx)()
	const atOnce = 4
	var pods errgroup.Group
	pods.SetLimit(atOnce)
	for i := range n {
		pods.Go(func() error {
			_, err := h.join(ctx, fmt.Sprintf("pod%d", first+i))
			return err
		})
	}
	return pods.Wait()
}

// place is where traffic begins or ends: a pod or a stock tailscaled.
type place struct {
	addrs   []netip.Addr // in the tailnet
	command func(ctx context.Context, args ...string) *exec.Cmd
}

func (p place) addr(ipv6 bool) netip.Addr {
	i := slices.IndexFunc(p.addrs, func(a netip.Addr) bool { return a.Is6() == ipv6 })
	if i < 0 {
		return netip.Addr{}
	}
	return p.addrs[i]
}

// run runs a program of this machine there to its end.
func (p place) run(ctx context.Context, args ...string) (string, error) {
	return lab.Run(p.command(ctx, args...))
}

// addPeer logs one more stock tailscaled in, of the version that the engine has.
func (t *tailnet) addPeer(ctx context.Context) (*lab.Peer, place, error) {
	key, err := t.plane.NewKey(ctx, podTag)
	if err != nil {
		return nil, place{}, fmt.Errorf("getting a peer its key: %w", err)
	}
	t.peers++
	peer, err := t.lab.StartPeer(ctx, lab.PeerConfig{
		Name: fmt.Sprintf("stock%d", t.peers), LoginServer: t.plane.ControlURL, AuthKey: key, Recent: true,
	})
	if err != nil {
		return nil, place{}, err
	}
	return peer, place{[]netip.Addr{peer.IP4, peer.IP6}, func(ctx context.Context, args ...string) *exec.Cmd {
		return peer.Command(ctx, args[0], args[1:]...)
	}}, nil
}
