// SPDX-License-Identifier: BSD-3-Clause

package scene

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Stream is one TCP connection to a pod's echo over which a line goes about every 10 ms.
type Stream struct {
	Name string

	cmd    *exec.Cmd
	stderr bytes.Buffer
	ended  chan struct{}
	err    error // of the command, valid once ended is closed

	mu      sync.Mutex
	answers int
	longest time.Duration
}

// OpenStream connects and returns when the first answer has come. The stream ends with ctx, or with Close.
func (s *Scene) OpenStream(ctx context.Context, from Place, pod *Pod, at netip.Addr) (*Stream, error) {
	st := &Stream{Name: from.Name + " -> " + pod.Spec.Name, ended: make(chan struct{})}
	var err error
	st.cmd, err = from.Command(ctx, from.tool, "stream", "-timeout", askPatience, "-every", "10ms", netip.AddrPortFrom(at, 7).String())
	if err != nil {
		return nil, err
	}
	stdout, err := st.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	st.cmd.Stderr = &st.stderr
	if err := st.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting stream %s: %w", st.Name, err)
	}
	go st.read(bufio.NewScanner(stdout))
	return st, st.AwaitMore(ctx, 1)
}

// read reads labtool's lines, which are "connected …" and then number, time and how long the answer took.
func (st *Stream) read(lines *bufio.Scanner) {
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) == 3 {
			if took, err := time.ParseDuration(fields[2]); err == nil {
				st.answered(took)
			}
		}
	}
	st.err = st.cmd.Wait()
	close(st.ended)
}

func (st *Stream) answered(took time.Duration) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.answers++
	st.longest = max(st.longest, took)
}

// Answers is how many came so far, and the longest wait for one.
func (st *Stream) Answers() (n int, longest time.Duration) {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.answers, st.longest
}

// AwaitMore returns when n more answers have come. A broken connection is an error at once.
func (st *Stream) AwaitMore(ctx context.Context, n int) error {
	before, _ := st.Answers()
	return eventually(ctx, st.ended, func(context.Context) error {
		now, _ := st.Answers()
		if now >= before+n {
			return nil
		}
		return fmt.Errorf("stream %s: expected %d more answers, saw %d", st.Name, n, now-before)
	})
}

// Close ends the stream. Its error says that the connection broke before.
func (st *Stream) Close() error {
	select {
	case <-st.ended:
		return fmt.Errorf("stream %s: expected it to last, it broke: %s", st.Name, strings.TrimSpace(st.stderr.String()))
	default:
	}
	_ = st.cmd.Process.Signal(syscall.SIGTERM) // an error says that it has just ended
	select {
	case <-st.ended:
	case <-time.After(2 * time.Second): // it waits for an answer that does not come
		_ = st.cmd.Process.Kill()
		<-st.ended
		return fmt.Errorf("stream %s: expected answers, it waits for one", st.Name)
	}
	return nil
}

// Survive keeps streams to the pod open from each place while disturb runs, and checks that each then goes on over the
// same connection. It returns the longest wait for an answer of each.
func (s *Scene) Survive(ctx context.Context, pod *Pod, from []Place, disturb func(context.Context) error) (waits []time.Duration, err error) {
	var streams []*Stream
	defer func() {
		for _, st := range streams {
			if closeErr := st.Close(); err == nil {
				err = closeErr
			}
		}
	}()
	for _, place := range from {
		st, err := s.OpenStream(ctx, place, pod, pod.IP4())
		if err != nil {
			return nil, err
		}
		streams = append(streams, st)
	}
	for _, st := range streams {
		if err := st.AwaitMore(ctx, 10); err != nil { // so that it is well under way
			return nil, err
		}
	}
	if err := disturb(ctx); err != nil {
		return nil, err
	}
	for _, st := range streams {
		if err := st.AwaitMore(ctx, 50); err != nil {
			return nil, err
		}
		_, longest := st.Answers()
		waits = append(waits, longest)
	}
	return waits, nil
}
