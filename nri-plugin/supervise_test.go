// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"tailscale-nri/nri-plugin/internal/buildinfo"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/supervisor"
)

// crashCode is what a child of the role "crash" ends with.
const crashCode = 7

// endOnSignal ends the process as its parts may, when told to.
func endOnSignal() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH)
	for sig := range c {
		switch sig {
		case syscall.SIGUSR1:
			panic("in the goroutine of one backend")
		case syscall.SIGUSR2:
			os.Exit(0)
		case syscall.SIGWINCH:
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), plugintest.RoleVar+"=orphan")
			fmt.Fprintln(os.Stderr, "left an orphan:", cmd.Run())
		}
	}
}

// leaveOrphan starts a process and ends before it does.
func leaveOrphan() {
	if err := exec.Command("/bin/sleep", "1000").Start(); err != nil {
		panic(err)
	}
}

// program is one that runs, supervisor and child.
type program struct {
	*exec.Cmd
	book  *plugintest.LogBook
	ended chan error
}

const servesLine = "nothing listens on the NRI socket"

// serving starts the program in dir and waits until it serves.
func serving(t *testing.T, dir string, set ...func(*exec.Cmd)) *program {
	t.Helper()
	p := begin(t, dir, set...)
	p.await(t, servesLine, 1)
	return p
}

func begin(t *testing.T, dir string, set ...func(*exec.Cmd)) *program {
	t.Helper()
	cmd, book, ended := startProcess(t, dir, set...)
	return &program{cmd, book, ended}
}

// await waits until the log has said s for the nth time.
func (p *program) await(t *testing.T, s string, n int) {
	t.Helper()
	for p.book.Count(s) < n {
		select {
		case <-p.book.Grown:
		case err := <-p.ended:
			t.Fatalf("ended with %v\n%s", err, p.book)
		case <-time.After(plugintest.Patience):
			t.Fatalf("the log has %q %d times, want %d\n%s", s, p.book.Count(s), n, p.book)
		}
	}
}

// only is the pid of the supervisor's one child.
func (p *program) only(t *testing.T) int {
	t.Helper()
	pids := childrenOf(p.Process.Pid)
	if len(pids) != 1 {
		t.Fatalf("children %v, want one\n%s", pids, p.book)
	}
	return pids[0]
}

// childrenOf lists a process's children, ended ones too.
func childrenOf(parent int) (pids []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range stats {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if f := statOf(pid); len(f) > 1 && f[1] == strconv.Itoa(parent) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// statOf are the fields of /proc/PID/stat from the third on: state, parent and
// so on. There are none for a process that is gone.
func statOf(pid int) []string {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
}

func awaitGone(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(plugintest.Patience); len(statOf(pid)) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("process %d is still there: %v", pid, statOf(pid)[:2])
		}
	}
}

func (p *program) signal(t *testing.T, pid int, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		t.Fatal(err)
	}
}

// end ends the program with sig and returns its exit code.
func (p *program) end(t *testing.T, sig syscall.Signal) int {
	t.Helper()
	p.signal(t, p.Process.Pid, sig)
	plugintest.Receive(t, p.ended, "the end of the program")
	return p.ProcessState.ExitCode()
}

// TestChildIsStartedAgain however it ends, as long as it did not mean to: by a
// panic, by a call of os.Exit, by a signal.
func TestChildIsStartedAgain(t *testing.T) {
	p := serving(t, t.TempDir())
	for i, tt := range []struct {
		sig   syscall.Signal
		ended string
	}{
		{syscall.SIGUSR1, "exit code 2"},
		{syscall.SIGUSR2, "exit code 0"},
		{syscall.SIGKILL, "signal 9 (killed)"},
	} {
		p.signal(t, p.only(t), tt.sig)
		p.await(t, servesLine, i+2)
		for text, n := range map[string]int{
			"level=ERROR": i + 1,
			"standing by": 0, // an end is over before the next one begins
			fmt.Sprintf("starting it again\" ended=%q", tt.ended):       1,
			fmt.Sprintf("msg=starting version=%s", buildinfo.Version()): i + 2,
			fmt.Sprintf(" restarts=%d\n", i+1):                          1,
		} {
			if got := p.book.Count(text); got != n {
				t.Errorf("after %v the log says %q %d times, want %d\n%s", tt.sig, text, got, n, p.book)
			}
		}
	}
	if p.book.Count("panic: in the goroutine of one backend") != 1 {
		t.Error("the panic's text is lost")
	}
	child := p.only(t)
	if code := p.end(t, syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d after SIGTERM\n%s", code, p.book)
	}
	awaitGone(t, child)
}

// TestSignalsArePassedOn: the child's end is the program's.
func TestSignalsArePassedOn(t *testing.T) {
	for sig, code := range map[syscall.Signal]int{syscall.SIGTERM: 0, syscall.SIGINT: 0, syscall.SIGQUIT: 2} {
		p := serving(t, t.TempDir())
		child := p.only(t)
		if got := p.end(t, sig); got != code {
			t.Errorf("%v: exit code %d, want %d\n%s", sig, got, code, p.book)
		}
		awaitGone(t, child)
		if listed := p.book.Count("goroutine ") > 0; listed != (sig == syscall.SIGQUIT) || p.book.Count("level=ERROR") != 0 {
			t.Errorf("%v: the log says\n%s", sig, p.book)
		}
	}
}

// TestChildMeansToEnd: what the child says of its end counts, whatever sent the
// signal.
func TestChildMeansToEnd(t *testing.T) {
	p := serving(t, t.TempDir())
	p.signal(t, p.only(t), syscall.SIGTERM)
	if err := plugintest.Receive(t, p.ended, "the end of the program"); err != nil || p.book.Count("level=ERROR") != 0 {
		t.Errorf("ended with %v\n%s", err, p.book)
	}
}

// TestParentIsKilled: the child does not outlive it, and what it holds keeps
// the next one waiting, not out.
func TestParentIsKilled(t *testing.T) {
	dir := t.TempDir()
	p := serving(t, dir)
	child := p.only(t)
	p.end(t, syscall.SIGKILL)
	next := serving(t, dir)
	awaitGone(t, child)
	if code := next.end(t, syscall.SIGTERM); code != 0 {
		t.Errorf("the next one: exit code %d\n%s", code, next.book)
	}
}

// TestGivesUp: a child that never comes to serve is not started forever.
func TestGivesUp(t *testing.T) {
	out, err := process(t, plugintest.RoleVar+"=crash").CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != crashCode {
		t.Errorf("ended with %v, want exit code %d", err, crashCode)
	}
	if text := string(out); strings.Count(text, "starting it again") != supervisor.MaxUnserved-1 || strings.Count(text, "giving up") != 1 {
		t.Errorf("it said\n%s", text)
	}
}

// TestTakesOrphans: as the first process of a container, the program has to
// reap processes that it never started.
func TestTakesOrphans(t *testing.T) {
	p := serving(t, t.TempDir(), func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	})
	child := p.only(t)
	p.signal(t, child, syscall.SIGWINCH)
	p.await(t, "left an orphan: <nil>", 1)
	pids := childrenOf(p.Process.Pid)
	if len(pids) != 2 {
		t.Fatalf("children %v, want the child and the orphan", pids)
	}
	for _, pid := range pids {
		if pid != child {
			p.signal(t, pid, syscall.SIGKILL)
			awaitGone(t, pid)
		}
	}
	if p.only(t) != child || p.book.Count("level=ERROR") != 0 {
		t.Errorf("the child was restarted\n%s", p.book)
	}
	if code := p.end(t, syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d\n%s", code, p.book)
	}
}
