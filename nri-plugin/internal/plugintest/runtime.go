// SPDX-License-Identifier: BSD-3-Clause

package plugintest

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
)

// Adjusted asks for the adjustment of a container as the runtime does.
func (r *Runtime) Adjusted(sb *api.PodSandbox, mounts ...*api.Mount) (*api.ContainerAdjustment, error) {
	res, err := r.CreateContainer(context.Background(), &adaptation.CreateContainerRequest{
		Pod: sb, Container: &api.Container{Id: "main", PodSandboxId: sb.Id, Name: "main", Mounts: mounts},
	})
	return res.GetAdjust(), err
}

// RoleVar makes the test binary another program.
const RoleVar = "TAILSCALE_NRI_TEST_ROLE"

// RuntimeProcess offers NRI on socket until its standard input ends.
func RuntimeProcess(socket string) {
	r, err := newRuntime(socket, filepath.Dir(socket))
	if err == nil {
		err = r.Start()
	}
	fmt.Println(err)
	io.Copy(io.Discard, os.Stdin)
}

// Runtime is the runtime's side of NRI, as containerd has it.
type Runtime struct {
	*adaptation.Adaptation
	Mu         sync.Mutex
	Sandboxes  []*api.PodSandbox
	Containers []*api.Container
	Synced     chan error // the outcome of each Synchronize
}

func newRuntime(socket, dir string, options ...adaptation.Option) (*Runtime, error) {
	r := &Runtime{Synced: make(chan error, 100)}
	sync := func(ctx context.Context, cb adaptation.SyncCB) error {
		r.Mu.Lock()
		defer r.Mu.Unlock()
		_, err := cb(ctx, r.Sandboxes, r.Containers)
		r.Synced <- err
		return err
	}
	update := func(context.Context, []*api.ContainerUpdate) ([]*api.ContainerUpdate, error) { return nil, nil }
	var err error
	options = append(options, adaptation.WithSocketPath(socket),
		adaptation.WithPluginPath(filepath.Join(dir, "plugins")), adaptation.WithPluginConfigPath(dir))
	r.Adaptation, err = adaptation.New("containerd", "v2.4.2", sync, update, options...)
	return r, err
}

// StartRuntime opens NRI in dir until the test ends.
func StartRuntime(t *testing.T, dir string, sandboxes ...*api.PodSandbox) *Runtime {
	t.Helper()
	return StartRuntimeWith(t, dir, nil, sandboxes...)
}

// StartRuntimeWith is StartRuntime with options of the runtime.
func StartRuntimeWith(t *testing.T, dir string, options []adaptation.Option, sandboxes ...*api.PodSandbox) *Runtime {
	t.Helper()
	r, err := newRuntime(filepath.Join(dir, "nri.sock"), dir, options...)
	if err != nil {
		t.Fatal(err)
	}
	r.Sandboxes = sandboxes
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Stop)
	<-r.Synced // of the plugins that the runtime starts itself: none
	return r
}

// WaitSynced waits until a plugin is synchronized and gets events.
func (r *Runtime) WaitSynced(t *testing.T) {
	t.Helper()
	if err := Receive(t, r.Synced, "Synchronize"); err != nil {
		t.Fatal(err)
	}
	r.BlockPluginSync().Unblock()
}

// Create asks whether a container of the sandbox may be created.
func (r *Runtime) Create(sb *api.PodSandbox, name string) error {
	_, err := r.CreateContainer(context.Background(), &adaptation.CreateContainerRequest{
		Pod: sb, Container: &api.Container{Id: name, PodSandboxId: sb.Id, Name: name},
	})
	return err
}

// Restart is Create for a container that has run before, as the kubelet marks it.
func (r *Runtime) Restart(sb *api.PodSandbox, name string) error {
	_, err := r.CreateContainer(context.Background(), &adaptation.CreateContainerRequest{Pod: sb, Container: &api.Container{
		Id: name, PodSandboxId: sb.Id, Name: name, Annotations: map[string]string{"io.kubernetes.container.restartCount": "1"},
	}})
	return err
}

// RunPod says that the sandbox has started.
func (r *Runtime) RunPod(sb *api.PodSandbox) error {
	return r.RunPodSandbox(context.Background(), &adaptation.RunPodSandboxRequest{Pod: sb})
}

// StartRuntimeProcess is StartRuntime in a process of its own, whose end, by
// the function returned, closes its connections as containerd's end does.
func StartRuntimeProcess(t *testing.T, dir string) (kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0], filepath.Join(dir, "nri.sock"))
	cmd.Env = append(os.Environ(), RoleVar+"=runtime")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	t.Cleanup(kill)
	var said string
	if _, err := fmt.Fscan(out, &said); err != nil || said != "<nil>" {
		t.Fatalf("the runtime's process says %q, %v", said, err)
	}
	return kill
}
