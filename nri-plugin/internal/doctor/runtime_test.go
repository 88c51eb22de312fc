// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/adaptation"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/nri"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/settings"
	"tailscale-nri/nri-plugin/internal/status"
	"tailscale-nri/nri-plugin/internal/statussocket"
	"tailscale-nri/nri-plugin/internal/statustest"
)

func TestCheckConfiguration(t *testing.T) {
	expect(t, look(t, testHost(t), checkConfiguration), ResultOK, "an auth key", "")
	h := NewHost(plugintest.Environment(map[string]string{settings.ClusterName: "-", settings.AuthKey: plugintest.Secret}), 0)
	expect(t, look(t, h, checkConfiguration), ResultFail, `CLUSTER_NAME is "-"`, RemedyConfiguration)
}

// serveHealth answers for a plugin of that health on the host's status socket.
func serveHealth(t *testing.T, h *Host, health *statussocket.Health) {
	t.Helper()
	ln, err := statussocket.Listen(t.Context(), h.cfg.StatusSocket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- (&statussocket.Server{Health: health, Listener: ln}).Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		plugintest.Receive(t, done, "the end of Run")
	})
}

// register keeps a plugin without pods registered until the test ends.
func register(t *testing.T, socket string, health *statussocket.Health, ownUID string) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	r := &nri.Registration{
		Socket: socket, Health: health, Log: log,
		Plugin: &nri.Plugin{Pods: plugintest.NewFakePods(), OwnUID: ownUID, Log: log},
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := plugintest.Receive(t, done, "the end of Run"); err != nil {
			t.Error(err)
		}
	})
}

func TestCheckPlugin(t *testing.T) {
	h := testHost(t)
	expect(t, look(t, h, checkPlugin), ResultFail, "no process answers", remedyNoPlugin)
	health := &statussocket.Health{}
	serveHealth(t, h, health)
	expect(t, look(t, h, checkPlugin), ResultFail, "not ready: starting", remedyNotReady)
	health.Connect()(nil)
	expect(t, look(t, h, checkPlugin), ResultOK, statussocket.ReadyText, "")
	health.Note("a remark")
	expect(t, look(t, h, checkPlugin), ResultWarn, "a remark", remedyNotReady)
	health.Disconnected("another runtime has taken the kubelet's socket", true)
	expect(t, look(t, h, checkPlugin), ResultFail, "another runtime has taken the kubelet's socket", remedyNotReady)
	health.StandBy(func() string { return "" })
	expect(t, look(t, h, checkPlugin), ResultWarn, "standing by", remedyTwoPlugins)
}

// TestCheckPods: how the plugin's pods are is among what is said of it.
func TestCheckPods(t *testing.T) {
	h := testHost(t)
	nodes := append(plugintest.TwoNodes(), engine.NodeStatus{Namespace: "default", Pod: "ended", State: engine.Stopped, Reason: "its sandbox has ended"})
	h.cfg.StatusSocket = statustest.Start(t, nodes)
	got := look(t, h, checkPlugin)
	expect(t, got, ResultOK, "3 pods, 1 of them Running", "")
	expect(t, got, ResultWarn, "default/api is Pending: the OAuth secret was refused", remedyPods)
	if len(got) != 3 {
		t.Errorf("got %+v", got)
	}

	h = testHost(t)
	health := &statussocket.Health{}
	health.Connect()(nil)
	health.Warns(func() []status.Node {
		return []status.Node{{Namespace: "default", Pod: "old", State: status.NoNode, Reason: "gets no tailnet node"}}
	})
	serveHealth(t, h, health)
	expect(t, look(t, h, checkPlugin), ResultWarn, "default/old gets no tailnet node", remedyPods)
}

// TestCheckNRI: what a registered plugin knows of the runtime, and what is left where
// there is none.
func TestCheckNRI(t *testing.T) {
	for _, tt := range []struct {
		name                 string
		timeout              time.Duration
		uid                  string
		result, seen, remedy string
	}{
		{"as containerd has it", adaptation.DefaultPluginRequestTimeout, "uid-own", ResultOK, "containerd v2.4.2, timeouts 5s for the registration and 2s for a request; it runs the plugin's pod", ""},
		{"nobody has looked", adaptation.DefaultPluginRequestTimeout, "", ResultUnknown, "POD_UID is not set", ""},
		{"too short", time.Second, "", ResultWarn, "1s for a request", remedyTimeouts},
	} {
		t.Run(tt.name, func(t *testing.T) {
			adaptation.SetPluginRequestTimeout(tt.timeout)
			t.Cleanup(func() { adaptation.SetPluginRequestTimeout(adaptation.DefaultPluginRequestTimeout) })
			h := testHost(t)
			own := plugintest.Sandbox("own")
			own.Uid = "uid-own"
			r := plugintest.StartRuntime(t, filepath.Dir(h.cfg.NRISocket), own)
			health := &statussocket.Health{}
			serveHealth(t, h, health)
			register(t, h.cfg.NRISocket, health, tt.uid)
			r.WaitSynced(t)
			for deadline := time.Now().Add(plugintest.Patience); health.RegisteredWith().Name == ""; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the plugin does not know its runtime")
				}
			}
			expect(t, look(t, h, checkNRI), tt.result, tt.seen, tt.remedy)
		})
	}
}

// TestKnock: without a plugin the doctor does not register. It hangs up, and a plugin
// can register afterwards.
func TestKnock(t *testing.T) {
	h := testHost(t)
	h.root = "/"
	expect(t, look(t, h, checkNRI), ResultFail, "nothing listens", remedyNoNRI)
	r := plugintest.StartRuntime(t, filepath.Dir(h.cfg.NRISocket))
	expect(t, look(t, h, checkNRI), ResultUnknown, filepath.Base(os.Args[0])[:5], "")
	register(t, h.cfg.NRISocket, &statussocket.Health{}, "")
	r.WaitSynced(t)
	if err := r.RunPod(plugintest.Sandbox("plain")); err != nil {
		t.Error(err)
	}
}

// TestKnockAtDocker: a process of that name has the socket.
func TestKnockAtDocker(t *testing.T) {
	h := testHost(t)
	h.root = "/"
	docker := filepath.Join(t.TempDir(), "dockerd")
	self, err := os.Executable()
	if err == nil {
		err = os.Symlink(self, docker)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(docker, h.cfg.NRISocket)
	cmd.Env = append(os.Environ(), plugintest.RoleVar+"=runtime")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	var said string
	if _, err := fmt.Fscan(out, &said); err != nil || said != "<nil>" {
		t.Fatalf("it says %q, %v", said, err)
	}
	expect(t, look(t, h, checkNRI), ResultFail, "dockerd listens on the NRI socket", remedyOtherRuntime)
}

// TestListenerOfNoSocket: a file that is not a unix socket has no process.
func TestListenerOfNoSocket(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if pid, ok := listener(a); ok {
		t.Errorf("it is process %d", pid)
	}
}
