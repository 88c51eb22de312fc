// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/scene"
)

// TestRanBefore: pods that would be refused but ran before the plugin came go on, over restarts of it, and so does what is
// created again of them. Their next sandbox is refused.
func TestRanBefore(t *testing.T) {
	t.Parallel()
	s := open(t, "before")
	run := func(spec lab.PodSpec) *scene.Pod {
		t.Helper()
		pod, err := s.RunPod(s.ctx, spec)
		s.must(err)
		return pod
	}
	// labtool would take the node's ports.
	ingress, err := s.RunSandbox(s.ctx, lab.PodSpec{Name: "ingress", HostNetwork: true, Annotations: scene.OptIn()})
	s.must(err)
	cri, idle := s.Lab.CRI(), []string{"sleep"}
	ingress.Container, err = cri.RunContainer(s.ctx, ingress.ID, lab.ContainerSpec{Name: "tool", Args: idle})
	s.must(err)
	typo := run(lab.PodSpec{Name: "typo", Annotations: map[string]string{"tailscale.com/enabled": "yes please"}})
	never, err := s.RunSandbox(s.ctx, lab.PodSpec{Name: "never", Annotations: map[string]string{"tailscale.com/enabled": "perhaps"}})
	s.must(err)
	s.start()
	s.must(s.Registered(s.ctx))
	// As a kubelet creates it after a crash: the old one has exited, and is in no list of containerd's.
	restart := func(pod *scene.Pod, n int) {
		t.Helper()
		s.must(cri.StopContainer(s.ctx, pod.Container, 0))
		id, err := cri.RunContainer(s.ctx, pod.ID, lab.ContainerSpec{
			Name: fmt.Sprintf("tool-%d", n), Args: idle, Annotations: map[string]string{"io.kubernetes.container.restartCount": fmt.Sprint(n)},
		})
		s.must(err)
		pod.Container = id
	}
	restart(ingress, 1)
	restart(typo, 1)
	for _, pod := range []*scene.Pod{ingress, typo} { // a container that is there for the first time
		_, err := cri.RunContainer(s.ctx, pod.ID, lab.ContainerSpec{Name: "sidecar", Args: idle})
		s.must(err)
	}
	if _, err := cri.RunContainer(s.ctx, never.ID, lab.ContainerSpec{Name: "tool"}); err == nil || !strings.Contains(err.Error(), "perhaps") {
		t.Errorf("a pod that never ran: %v", err)
	}
	for _, pod := range []*scene.Pod{ingress, typo} {
		lines, err := s.LogLines(pod.FullName(), "gets no tailnet node; it ran before")
		if err != nil || len(lines) != 1 {
			t.Errorf("the log has %q of %s: %v", lines, pod.FullName(), err)
		}
	}
	status := s.status()
	for pod, want := range map[string]string{"ingress": "runs without a", "typo": "runs without a", "never": "gets no"} {
		line := regexp.MustCompile(`(?m)^default/` + pod + ` +NoNode .* ` + want + ` tailnet node: `)
		if !line.MatchString(status) {
			t.Errorf("the status does not say of %s that it %s node:\n%s", pod, want, status)
		}
	}
	s.must(s.Plugin.End(s.ctx, unix.SIGTERM))
	s.start()
	s.must(s.Registered(s.ctx))
	restart(ingress, 2)
	restart(typo, 2)
	for _, spec := range []lab.PodSpec{
		{Name: "ingress2", HostNetwork: true, Annotations: scene.OptIn()},
		{Name: "typo2", Annotations: typo.Spec.Annotations},
	} {
		_, err := s.Refused(s.ctx, spec, "tailscale.com/enabled")
		s.must(err)
	}
}

// TestRuntimeHandlers: a pod of a RuntimeClass whose handler is not in the list is refused, and told what to do; with the
// handler in the list it runs. One that has its node keeps it when the list no longer has the handler.
func TestRuntimeHandlers(t *testing.T) {
	t.Parallel()
	s := openServed(t, "handler")
	spec := lab.PodSpec{Name: "boxed", RuntimeHandler: lab.OtherHandler, Annotations: scene.OptIn()}
	refusal, err := s.Refused(s.ctx, spec, "runtimeClassName", `runtime handler "other"`, "TS_RUNTIME_HANDLERS", "default/boxed")
	s.must(err)
	t.Log(refusal)
	plain, err := s.RunSandbox(s.ctx, lab.PodSpec{Name: "plain", RuntimeHandler: lab.OtherHandler})
	s.must(err)
	s.must(s.RemovePod(s.ctx, plain))
	s.must(s.Plugin.End(s.ctx, unix.SIGTERM))
	s.start("TS_RUNTIME_HANDLERS=runc,other")
	s.must(s.Registered(s.ctx))
	pod, err := s.RunSandbox(s.ctx, spec)
	s.must(err)
	s.must(s.AwaitRunning(s.ctx, pod))
	s.must(s.Plugin.End(s.ctx, unix.SIGTERM))
	s.start()
	s.must(s.Registered(s.ctx))
	s.must(s.AwaitRunning(s.ctx, pod))
	_, err = s.Lab.CRI().RunContainer(s.ctx, pod.ID, lab.ContainerSpec{Name: "tool"})
	s.must(err)
}

// TestOtherRuntime has a second containerd take the NRI socket, as Docker's does next to a kubelet's. The plugin does not
// take its list for this node's pods, says who answers, and goes on when the right one has the socket again.
func TestOtherRuntime(t *testing.T) {
	t.Parallel()
	s := open(t, "two")
	s.must(s.StartPeer(s.ctx))
	agent, err := s.RunSandbox(s.ctx, lab.PodSpec{Name: "agent", HostNetwork: true, UID: "uid-of-the-agent"})
	s.must(err)
	own := "POD_UID=" + agent.Spec.UID
	s.start(own)
	s.must(s.Registered(s.ctx))
	web := s.runServing("web")
	was := fmt.Sprint(web.Node().NodeID, web.Node().Addresses)

	dir := filepath.Join(s.Lab.Dir(), "other")
	s.must(os.MkdirAll(dir, 0o755))
	config := filepath.Join(dir, "containerd.toml")
	s.must(os.WriteFile(config, fmt.Appendf(nil, otherContainerd, dir), 0o600))
	build, err := lab.Config{}.BuildDir()
	s.must(err)
	cmd := s.Lab.NodeCommand(t.Context(), filepath.Join(build, "bin", "containerd"), "--config", config)
	log, err := os.Create(filepath.Join(dir, "log"))
	s.must(err)
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	s.must(cmd.Start())
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	socket := s.Lab.NRISocket()
	before, err := os.Stat(socket)
	s.must(err)
	s.eventually(func() error {
		now, err := os.Stat(socket)
		if err == nil && os.SameFile(now, before) {
			said, _ := os.ReadFile(log.Name())
			err = fmt.Errorf("the other containerd has not taken %s:\n%s", socket, said[max(0, len(said)-2000):])
		}
		return err
	})
	s.must(s.Plugin.Kill(s.ctx))
	s.start(own)
	s.must(s.AwaitLog(s.ctx, "another runtime has taken the kubelet's socket", "containerd", "answers on the NRI socket", "NRI_SOCKET"))
	s.eventually(func() error {
		out, err := s.Lab.InNode(s.ctx, "sh", "-c", "tailscale-nri ready 2>&1 || true")
		if err == nil && !strings.Contains(out, "does not run this pod") {
			err = fmt.Errorf("ready says %q", out)
		}
		return err
	})
	s.must(s.AwaitRunning(s.ctx, web))
	s.must(s.FetchAs(s.ctx, s.AtPeer(), s.Peer.IP4, web, web.IP4()))
	missed := s.run("missed")
	s.must(s.Lab.Containerd().Restart(s.ctx, unix.SIGTERM))
	s.must(s.AwaitLog(s.ctx, "msg=\"registered with the container runtime"))
	s.must(s.AwaitRunning(s.ctx, missed))
	s.must(s.AwaitRunning(s.ctx, web))
	if is := fmt.Sprint(web.Node().NodeID, web.Node().Addresses); is != was {
		t.Errorf("the node was %s, is %s", was, is)
	}
	if lines, err := s.LogLines("level=WARN", "not registered"); err != nil || len(lines) != 1 {
		t.Errorf("the log says it %d times: %q, %v", len(lines), lines, err)
	}
}

// otherContainerd keeps all that it has to itself, but for the NRI socket.
const otherContainerd = `version = 4
imports = []
root = '%[1]s/root'
state = '%[1]s/state'
[plugins.'io.containerd.server.v1.grpc']
  address = '%[1]s/containerd.sock'
[plugins.'io.containerd.server.v1.ttrpc']
  address = '%[1]s/containerd.sock.ttrpc'
[plugins.'io.containerd.internal.v1.opt']
  path = '%[1]s/opt'
[plugins.'io.containerd.cri.v1.runtime']
  disable_apparmor = true
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  conf_dir = '%[1]s/cni'
[plugins.'io.containerd.nri.v1.nri']
  disable = false
  socket_path = '/var/run/nri/nri.sock'
  plugin_path = '%[1]s/plugins'
  plugin_config_path = '%[1]s/conf.d'
`
