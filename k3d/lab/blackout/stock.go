// SPDX-License-Identifier: BSD-3-Clause

package blackout

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/internal/nsthread"
	"tailscale-nri/k3d/lab/internal/proc"
	"tailscale-nri/k3d/lab/scene"
)

// stock are tailscaleds in kernel mode, each in namespaces of its own.
type stock struct {
	scene   *scene.Scene
	daemons []*daemon
}

// daemon is one of them, with the command line that it was first started with.
type daemon struct {
	peer *lab.Peer
	argv []string
	log  string

	cmd  *exec.Cmd     // nil while it is the lab's first one
	done chan struct{} // closed when cmd has ended
}

// join starts one more tailscaled and logs it in.
func (s *stock) join(ctx context.Context) (place, error) {
	plane, err := s.scene.Lab.Control(ctx)
	if err != nil {
		return place{}, err
	}
	name := fmt.Sprintf("stock%d", len(s.daemons)+1)
	key, err := plane.NewKey(ctx, "tag:k8s-pod")
	if err != nil {
		return place{}, fmt.Errorf("getting %s a key: %w", name, err)
	}
	peer, err := s.scene.Lab.StartPeer(ctx, lab.PeerConfig{Name: name, LoginServer: plane.ControlURL, AuthKey: key})
	if err != nil {
		return place{}, err
	}
	d := &daemon{peer: peer, log: peer.Process().LogPath()}
	if d.argv, err = proc.CommandLine(peer.Process().PID()); err != nil {
		return place{}, err
	}
	s.daemons = append(s.daemons, d)
	ns, err := nsthread.OpenNetNS(peer.Process().PID())
	return place{name, ns, peer.IP4}, err
}

// restart ends all of them at once, and starts each again as soon as it has ended.
func (s *stock) restart(ctx context.Context, sig unix.Signal) error {
	var restarts errgroup.Group
	for _, d := range s.daemons {
		restarts.Go(func() error {
			if err := d.end(ctx, sig); err != nil {
				return err
			}
			return d.start()
		})
	}
	return restarts.Wait()
}

func (s *stock) pids() (all []int) {
	for _, d := range s.daemons {
		if d.cmd == nil {
			all = append(all, d.peer.Process().PID())
		} else {
			all = append(all, d.cmd.Process.Pid)
		}
	}
	return all
}

// restartRuntime concerns none of them.
func (s *stock) restartRuntime(ctx context.Context) error {
	return s.scene.Lab.Containerd().Restart(ctx, unix.SIGKILL)
}

// settled has nothing to add to what its traffic says.
func (s *stock) settled(context.Context) error { return nil }

func (d *daemon) end(ctx context.Context, sig unix.Signal) error {
	if d.cmd == nil {
		return d.peer.Process().End(ctx, sig)
	}
	if err := d.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("ending %v: %w", d.argv, err)
	}
	select {
	case <-d.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("ending %v with %v: %w", d.argv, sig, ctx.Err())
	}
}

// start runs it on the state that it has left. It ends with the lab, as the first one would.
func (d *daemon) start() error {
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("opening the log of %s: %w", filepath.Base(d.log), err)
	}
	defer log.Close()
	cmd, done := d.peer.Command(context.Background(), d.argv[0], d.argv[1:]...), make(chan struct{})
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %v again: %w", d.argv, err)
	}
	go func() {
		_ = cmd.Wait() // how it ends does not matter
		close(done)
	}()
	d.cmd, d.done = cmd, done
	return nil
}
