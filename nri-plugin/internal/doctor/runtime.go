// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tailscale-nri/nri-plugin/internal/errtext"
	"tailscale-nri/nri-plugin/internal/nri"
	"tailscale-nri/nri-plugin/internal/status"
	"tailscale-nri/nri-plugin/internal/statussocket"
)

// checkConfiguration says whether the process could be started like this.
func checkConfiguration(_ context.Context, h *Host) []Finding {
	if h.cfgErr != nil {
		return []Finding{fail(errtext.OneLine(h.cfgErr), RemedyConfiguration)}
	}
	by := "an OAuth client"
	switch {
	case h.cfg.AuthKey != "":
		by = "an auth key"
	case h.cfg.IDTokenFile != "":
		by = "a federated identity"
	}
	return []Finding{fine(fmt.Sprintf("cluster %s, %s, control server %s", h.cfg.Cluster, by, h.ways()[0].controlURL()))}
}

// checkPlugin asks the process that serves this host.
func checkPlugin(ctx context.Context, h *Host) []Finding {
	code, text, err := statussocket.Ask(ctx, h.cfg.StatusSocket, statussocket.AskReady)
	said := string(text)
	switch {
	case statussocket.NobodyListens(err):
		return []Finding{fail("no process answers on "+h.cfg.StatusSocket, remedyNoPlugin)}
	case err != nil:
		return []Finding{fail("asking on "+h.cfg.StatusSocket+": "+err.Error(), remedyNoPlugin)}
	case code != http.StatusOK:
		return []Finding{fail(said, remedyNotReady)}
	case strings.HasPrefix(said, "standing by"):
		return []Finding{warn(said, remedyTwoPlugins)}
	case said != statussocket.ReadyText:
		return []Finding{warn(said, remedyNotReady)}
	}
	return append([]Finding{fine(said)}, h.pods(ctx)...)
}

// pods says how many pods have their node, and why others have not.
func (h *Host) pods(ctx context.Context) []Finding {
	nodes, ok := h.nodes(ctx)
	if !ok {
		return []Finding{unknown("it does not say which pods it serves")}
	}
	var findings []Finding
	count := map[string]int{}
	for _, n := range nodes {
		count[n.State]++
		switch {
		case n.State == status.NoNode:
			findings = append(findings, warn(fmt.Sprintf("%s/%s %s", n.Namespace, n.Pod, n.Reason), remedyPods))
		case n.Reason != "" && n.State != status.Stopped && (n.State == status.Running || time.Since(n.Since) >= startPatience):
			findings = append(findings, warn(fmt.Sprintf("%s/%s is %s: %s", n.Namespace, n.Pod, n.State, n.Reason), remedyPods))
		}
	}
	seen := fmt.Sprintf("%d pods, %d of them Running", len(nodes), count[status.Running])
	return append([]Finding{fine(seen)}, findings[:min(len(findings), mostReasons)]...)
}

// startPatience is how long a pod may take to start without a finding.
const startPatience = 10 * time.Second

// mostReasons bounds how many pods are listed; status has them all.
const mostReasons = 10

// checkNRI looks at the runtime: by what the plugin knows of it, if it is registered.
// Otherwise it connects and hangs up, and does not register: a registration holds up
// all pods of the host. A runtime takes plugins one at a time and logs one that hangs
// up as an error (NRI 0.12, pkg/adaptation, acceptPluginConnections).
func checkNRI(ctx context.Context, h *Host) []Finding {
	var info statussocket.RuntimeInfo
	code, body, err := statussocket.Ask(ctx, h.cfg.StatusSocket, statussocket.AskRuntime)
	if err == nil && code == http.StatusOK && json.Unmarshal(body, &info) == nil && info.Name != "" {
		return []Finding{judgeRuntime(info)}
	}
	return []Finding{dialNRI(ctx, h)}
}

func judgeRuntime(info statussocket.RuntimeInfo) Finding {
	seen := fmt.Sprintf("registered with %s %s, timeouts %v for the registration and %v for a request",
		info.Name, info.Version, info.RegistrationTimeout, info.RequestTimeout)
	if info.RunsThisPod {
		seen += "; it runs the plugin's pod, so it is the kubelet's"
	} else {
		seen += "; POD_UID is not set, so nobody has looked whether it is the kubelet's"
	}
	if info.RequestTimeout != 0 && info.RequestTimeout < nri.HookBudget+100*time.Millisecond {
		return warn(seen, remedyTimeouts)
	}
	if !info.RunsThisPod {
		return unknown(seen)
	}
	return fine(seen)
}

func dialNRI(ctx context.Context, h *Host) Finding {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", h.cfg.NRISocket)
	if err != nil {
		return fail("nothing listens on the NRI socket "+h.cfg.NRISocket+" ("+err.Error()+")", remedyNoNRI)
	}
	defer conn.Close()
	name := "a process that cannot be seen from here"
	if pid, ok := listener(conn); ok {
		comm, err := h.read("proc", strconv.Itoa(pid), "comm")
		if err == nil {
			name = comm
		}
	}
	seen := cmp.Or(name, "a process") + " listens on the NRI socket " + h.cfg.NRISocket + "; whether it runs pods, and answers plugins, is known once the plugin is registered"
	if strings.Contains(name, "docker") {
		return fail(seen, remedyOtherRuntime)
	}
	return unknown(seen)
}

// listener returns the process that listens on a unix socket, if it
// is seen in this PID namespace.
func listener(conn net.Conn) (pid int, ok bool) {
	c, is := conn.(*net.UnixConn)
	if !is {
		return 0, false
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, false
	}
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err == nil && cred.Pid > 0 {
			pid, ok = int(cred.Pid), true
		}
	})
	return pid, ok && err == nil
}
