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
func checkConfiguration(_ context.Context, m *Machine) []Finding {
	if m.cfgErr != nil {
		return []Finding{fail(errtext.OneLine(m.cfgErr), RemedyConfiguration)}
	}
	by := "an OAuth client"
	switch {
	case m.cfg.AuthKey != "":
		by = "an auth key"
	case m.cfg.IDTokenFile != "":
		by = "a federated identity"
	}
	return []Finding{fine(fmt.Sprintf("cluster %s, %s, control server %s", m.cfg.Cluster, by, m.ways()[0].controlURL()))}
}

// checkPlugin asks the process that serves this host.
func checkPlugin(ctx context.Context, m *Machine) []Finding {
	code, text, err := statussocket.Ask(ctx, m.cfg.StatusSocket, statussocket.AskReady)
	said := string(text)
	switch {
	case statussocket.NobodyListens(err):
		return []Finding{fail("no process answers on "+m.cfg.StatusSocket, RemedyNoPlugin)}
	case err != nil:
		return []Finding{fail("asking on "+m.cfg.StatusSocket+": "+err.Error(), RemedyNoPlugin)}
	case code != http.StatusOK:
		return []Finding{fail(said, RemedyNotReady)}
	case strings.HasPrefix(said, "standing by"):
		return []Finding{warn(said, RemedyTwoPlugins)}
	case said != statussocket.ReadyText:
		return []Finding{warn(said, RemedyNotReady)}
	}
	return append([]Finding{fine(said)}, m.pods(ctx)...)
}

// pods says how many pods have their node, and why others have not.
func (m *Machine) pods(ctx context.Context) []Finding {
	nodes, ok := m.nodes(ctx)
	if !ok {
		return []Finding{unknown("it does not say which pods it serves")}
	}
	var findings []Finding
	count := map[string]int{}
	for _, n := range nodes {
		count[n.State]++
		switch {
		case n.State == status.NoNode:
			findings = append(findings, warn(fmt.Sprintf("%s/%s %s", n.Namespace, n.Pod, n.Reason), RemedyPods))
		case n.Reason != "" && n.State != status.Stopped && (n.State == status.Running || time.Since(n.Since) >= startPatience):
			findings = append(findings, warn(fmt.Sprintf("%s/%s is %s: %s", n.Namespace, n.Pod, n.State, n.Reason), RemedyPods))
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
func checkNRI(ctx context.Context, m *Machine) []Finding {
	var info statussocket.RuntimeInfo
	code, body, err := statussocket.Ask(ctx, m.cfg.StatusSocket, statussocket.AskRuntime)
	if err == nil && code == http.StatusOK && json.Unmarshal(body, &info) == nil && info.Name != "" {
		return []Finding{judgeRuntime(info)}
	}
	return []Finding{knock(ctx, m)}
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
		return warn(seen, RemedyTimeouts)
	}
	if !info.RunsThisPod {
		return unknown(seen)
	}
	return fine(seen)
}

func knock(ctx context.Context, m *Machine) Finding {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", m.cfg.NRISocket)
	if err != nil {
		return fail("nothing listens on the NRI socket "+m.cfg.NRISocket+" ("+err.Error()+")", RemedyNoNRI)
	}
	defer conn.Close()
	name := "a process that cannot be seen from here"
	if pid, ok := listener(conn); ok {
		comm, err := m.read("proc", strconv.Itoa(pid), "comm")
		if err == nil {
			name = comm
		}
	}
	seen := cmp.Or(name, "a process") + " listens on the NRI socket " + m.cfg.NRISocket + "; whether it runs pods, and answers plugins, is known once the plugin is registered"
	if strings.Contains(name, "docker") {
		return fail(seen, RemedyOtherRuntime)
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
