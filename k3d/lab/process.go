// SPDX-License-Identifier: BSD-3-Clause

package lab

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"tailscale-nri/k3d/lab/internal/proc"
	"tailscale-nri/k3d/lab/internal/wait"
)

// Process is a daemon of the lab. It outlives the program that started it, until Down.
type Process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{}
	err  error // valid once done is closed
}

// start runs cmd in a session of its own; its output is appended to Dir/log/NAME.log.
func (c Config) start(name string, cmd *exec.Cmd) (*Process, error) {
	p := &Process{name: name, log: c.path("log", name+".log"), cmd: cmd, done: make(chan struct{})}
	if err := os.MkdirAll(filepath.Dir(p.log), 0o755); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go p.wait()
	c.Logger.Debug("started", "process", name, "pid", cmd.Process.Pid)
	return p, nil
}

func (p *Process) wait() {
	p.err = p.cmd.Wait()
	close(p.done)
}

// PID of the process, also after its end.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Serving is the process that does the work: the child of one that supervises a child, else the process itself. A child
// that ends has another number when it is started again.
func (p *Process) Serving() int { return cmp.Or(proc.Child(p.PID()), p.PID()) }

// LogPath is the file that holds all the process has written, over all its starts.
func (p *Process) LogPath() string { return p.log }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait returns when the process has ended, with what os/exec says of its end.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("waiting for the end of %s: %w", p.name, ctx.Err())
	}
}

// End sends sig and waits for the process to be gone. One that has ended before is not an error, nor is the way it ends.
func (p *Process) End(ctx context.Context, sig os.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("ending %s: %w", p.name, err)
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("ending %s with %v: %w", p.name, sig, ctx.Err())
	}
}

// Kill ends the process as a crash would: it cannot clean up.
func (p *Process) Kill(ctx context.Context) error { return p.End(ctx, os.Kill) }

// tail is the end of the log, for errors.
func (p *Process) tail() string {
	all, _ := os.ReadFile(p.log)
	lines := bytes.Split(bytes.TrimSpace(all), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-5):], []byte("\n")))
}

// Await calls ready until it returns nil. It fails early when the process ends, and with ready's last answer when ctx
// does.
func (p *Process) Await(ctx context.Context, ready func(context.Context) error) error {
	err := wait.UntilEnd(ctx, pollInterval, p.done, ready)
	switch {
	case errors.Is(err, wait.ErrEnded):
		return fmt.Errorf("%s ended while starting (%v); the end of %s:\n%s", p.name, p.err, p.log, p.tail())
	case err != nil:
		return fmt.Errorf("waiting for %s: %w; see %s", p.name, err, p.log)
	}
	return nil
}

// pollInterval is how often to poll.
const pollInterval = 20 * time.Millisecond

// Run runs a short command to its end and returns its standard output; the error holds what it wrote.
func Run(cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("running %s: %w: %s", cmd.Args, err, bytes.TrimSpace(append(stderr.Bytes(), stdout.Bytes()...)))
	}
	return stdout.String(), nil
}
