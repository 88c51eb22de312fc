// SPDX-License-Identifier: BSD-3-Clause

package supervisor

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// longLife is how long a child must live for its end to count as an accident: the
	// pauses then start from none again.
	longLife = 10 * time.Second
	// Bounds of the pause between children that do not live long. The first of
	// them is followed at once.
	minPause, maxPause = 100 * time.Millisecond, 5 * time.Second
	// MaxUnserved is how many children in a row may end before they serve. No
	// pod is worse off without the next one, and what started this process has to
	// see that it fails.
	MaxUnserved = 5
)

// supervisor starts this program again as its child, which does all the work, and again
// whenever it ends other than on purpose. All pods of a host depend on that one process.
// A panic in the node of one pod, or a control plane that says "exit" (tailscale.com,
// controlclient, Debug.Exit), ends all nodes, and the kubelet may wait long before it
// starts this process again.
//
// It also holds the descriptor store, in which a child leaves its links' sockets for the
// next one, and does nothing else. All of it is one goroutine, so that no signal goes to
// a child that has been reaped, whose number may be another's by then.
type supervisor struct {
	log   *slog.Logger
	ends  chan os.Signal // to be passed on; the child's end is wanted then
	died  chan os.Signal // SIGCHLD: some child has ended
	place FDStore        // each child's, in turn
	ended bool           // one of ends has come

	short    int // children in a row that did not live long
	unserved int // children in a row that did not come to serve
}

// Run returns the last child's exit code, or an error if no child could be started in
// several attempts. newLog makes a logger as the configuration has it at the time.
func Run(newLog func() *slog.Logger) (code int, err error) {
	// The kernel kills the child at the end of the thread that started it.
	runtime.LockOSThread()
	place, err := newFDStore()
	if err != nil {
		return 1, err
	}
	s := &supervisor{log: newLog(), ends: make(chan os.Signal, 8), died: make(chan os.Signal, 1), place: place}
	signal.Notify(s.died, syscall.SIGCHLD)
	signal.Notify(s.ends, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT)
	for restarts := 0; ; restarts++ {
		c, err := s.start(restarts)
		if err != nil {
			// A host that has just run out of memory may still lack it.
			pause, again := s.next(ending{})
			if !again {
				return 1, err
			}
			s.log.Error("the serving process cannot be started, trying again", "err", err, "pause", pause)
			if s.sleep(pause); s.ended {
				return 0, nil
			}
			continue
		}
		if restarts == 0 {
			runtime.GOMAXPROCS(1)
			debug.FreeOSMemory() // what the packages' initialisation leaves
		}
		end := s.await(c)
		if end.intended || s.ended {
			return exitCode(end.status), nil
		}
		if end.again {
			s.log = newLog()
			s.short, s.unserved = 0, 0
			continue
		}
		pause, again := s.next(end)
		if !again {
			s.log.Error("the serving process keeps ending before it serves, giving up",
				"ended", describe(end.status), "times", s.unserved)
			return exitCode(end.status), nil
		}
		s.log.Error("the serving process ended unexpectedly, starting it again",
			"ended", describe(end.status), "after", end.lived.Round(time.Millisecond), "restarts", restarts+1, "pause", pause)
		if s.sleep(pause); s.ended {
			return 0, nil
		}
	}
}

// ending is how a child ended.
type ending struct {
	status   syscall.WaitStatus
	lived    time.Duration
	served   bool // it has served
	intended bool // it ended on purpose
	again    bool // it ended in order to be started again
}

// next returns how long to wait before the next child, and whether there is to
// be one.
func (s *supervisor) next(end ending) (pause time.Duration, again bool) {
	if end.lived >= longLife {
		s.short = 0
	} else {
		s.short++
	}
	if end.served {
		s.unserved = 0
	} else {
		s.unserved++
	}
	if s.short > 1 {
		pause = min(minPause<<min(s.short-2, 10), maxPause)
	}
	return pause, s.unserved < MaxUnserved
}

// await passes signals on to the child until it has ended.
func (s *supervisor) await(c child) ending {
	for {
		select {
		case sig := <-s.ends:
			s.ended = true
			if sig, ok := sig.(syscall.Signal); ok {
				// It has not been reaped, so there is nothing that can fail.
				_ = syscall.Kill(c.pid, sig)
			}
		case <-s.died:
			if status, ok := reap(c.pid); ok {
				return c.ending(status)
			}
		}
	}
}

// sleep waits for d, or for a signal that ends all.
func (s *supervisor) sleep(d time.Duration) {
	over := time.After(d)
	for {
		select {
		case <-s.ends:
			s.ended = true
			return
		case <-s.died:
			reap(0)
		case <-over:
			return
		}
	}
}

// reap takes all children that have ended, and reports how the one with this
// pid has, if it is among them. As the first process of a container, this one
// has the orphans of all others for children.
func reap(pid int) (status syscall.WaitStatus, ok bool) {
	for {
		var ws syscall.WaitStatus
		got, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil || got <= 0:
			return status, ok
		case got == pid:
			status, ok = ws, true
		}
	}
}

// child is a running child process.
type child struct {
	pid   int
	marks int // descriptor that its marks are read from
	since time.Time
}

// start starts this very program with this process's arguments, environment
// and standard streams.
func (s *supervisor) start(restarts int) (child, error) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return child{}, fmt.Errorf("making a pipe to the serving process: %w", err)
	}
	defer unix.Close(pipe[1])
	c := child{marks: pipe[0], since: time.Now()}
	var err error
	c.pid, err = syscall.ForkExec("/proc/self/exe", os.Args, &syscall.ProcAttr{
		Env:   append(os.Environ(), restartsVar+"="+strconv.Itoa(restarts)),
		Files: []uintptr{0, 1, 2, marksFD: uintptr(pipe[1]), storeInFD: uintptr(s.place.in), storeOutFD: uintptr(s.place.out)},
		Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		unix.Close(c.marks)
		return child{}, fmt.Errorf("starting the serving process: %w", err)
	}
	return c, nil
}

// ending reads the marks of a child that has ended.
func (c child) ending(status syscall.WaitStatus) ending {
	defer unix.Close(c.marks)
	var marks [8]byte
	// All that it wrote is here, since it has ended; nothing at all is not an error.
	n, _ := unix.Read(c.marks, marks[:])
	said := marks[:max(n, 0)]
	return ending{
		status:   status,
		lived:    time.Since(c.since),
		served:   slices.Contains(said, MarkServes),
		intended: slices.Contains(said, MarkExit),
		again:    slices.Contains(said, MarkRestart),
	}
}

// exitCode is the shell's: 128 and the signal, for a process that one ended.
func exitCode(status syscall.WaitStatus) int {
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

func describe(status syscall.WaitStatus) string {
	if status.Signaled() {
		return fmt.Sprintf("signal %d (%v)", status.Signal(), status.Signal())
	}
	return fmt.Sprintf("exit code %d", status.ExitStatus())
}
