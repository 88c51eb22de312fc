// SPDX-License-Identifier: BSD-3-Clause

package podtools

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/statussocket"
)

const usageCapture = `tailscale-nri capture [flags] [NAMESPACE/]POD
Write the packets that pass ts0 in the pod, in both directions, as a pcapng file: what the pod
sends to the tailnet and gets from it, before encryption. It ends at SIGINT, when the pod ends,
or when nobody reads what it writes.
  -w FILE                where to; - is standard output, which must not be a terminal (-)
  -c N                   end after so many packets; 0 is no end (0)
  -d DURATION            end after that time; 0 is no end (1h)
  -s BYTES               of each packet, from the Ethernet header on; 0 is all (0)
kubectl exec AGENT -- /tailscale-nri capture web -w - | wireshark -k -i -
`

const (
	// captureTime ends a capture that was forgotten: kubectl exec that is cut off
	// does not end what it has started, and containerd goes on holding its pipe.
	captureTime = time.Hour
	// captureStall is for how long the output may go unread.
	captureStall = 30 * time.Second
	// captureLook is how often the pod and the reader are looked at.
	captureLook = time.Second
	// captureLast is for how long the last packets may take to be written.
	captureLast = 2 * time.Second
)

// capturing is a capture's options and its result.
type capturing struct {
	file     string
	count    int
	duration time.Duration
	bytes    int
	stall    time.Duration

	tap   *engine.Tap
	netns engine.NetNS

	packets, partial, dropped atomic.Uint64
	since                     atomic.Int64 // of a write that has not ended, in nanoseconds of Unix time, 0 if there is none
}

func captureFlags(fs *flag.FlagSet) func(context.Context, *podClient, toolIO) error {
	c := &capturing{stall: captureStall}
	fs.StringVar(&c.file, "w", "-", "")
	fs.IntVar(&c.count, "c", 0, "")
	fs.DurationVar(&c.duration, "d", captureTime, "")
	fs.IntVar(&c.bytes, "s", 0, "")
	return c.run
}

func (c *capturing) run(ctx context.Context, pod *podClient, out toolIO) error {
	if c.count < 0 || c.duration < 0 || c.bytes < 0 {
		return errors.New("-c, -d and -s are 0 or more")
	}
	v, err := pod.view(ctx)
	if err != nil {
		return err
	}
	if v.State != engine.Running && v.State != engine.Pending {
		return fmt.Errorf("the pod %s has no %s: it is %s: %s", pod.name, engine.PodLink, v.State, v.Reason)
	}
	if err := c.checkOutput(out.stdout); err != nil {
		return err
	}
	c.netns = v.NetNS
	if c.tap, err = c.netns.OpenTap(c.bytes); err != nil {
		return fmt.Errorf("capturing in %s: %w", pod.name, err)
	}
	defer c.tap.Close()
	w, finish, err := c.open(out.stdout)
	if err != nil {
		return err
	}
	if c.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.duration)
		defer cancel()
	}
	fmt.Fprintf(out.stderr, "listening on %s of %s\n", engine.PodLink, pod.name)
	why, err := c.follow(ctx, w)
	_, _, countErr := c.countDrops()
	fmt.Fprintf(out.stderr, "%s%s\n", c.summary(), why)
	if err := errors.Join(err, countErr, finish()); err != nil {
		return noAnswer{fmt.Errorf("the capture is not whole: %w", err)}
	}
	return nil
}

// summary is the result, in one line.
func (c *capturing) summary() string {
	text := fmt.Sprintf("%d packets captured, %d dropped by the kernel", c.packets.Load(), c.dropped.Load())
	if n := c.partial.Load(); n > 0 {
		text += fmt.Sprintf("; %d have passed before their checksum was filled in, which is normal", n)
	}
	return text
}

// countDrops takes in what was dropped since it was last called, and returns what
// the tap has counted since then.
func (c *capturing) countDrops() (had, dropped uint64, err error) {
	had, dropped, err = c.tap.Counts()
	c.dropped.Add(dropped)
	return had, dropped, err
}

// checkOutput keeps packets off a terminal.
func (c *capturing) checkOutput(stdout io.Writer) error {
	if c.file == "-" && statussocket.IsTerminal(stdout) {
		return errors.New("standard output is a terminal, and packets are not text: write -w FILE, or lead it into a file or a program (kubectl exec without -t)")
	}
	return nil
}

// open opens what is written to. A file is for its owner alone.
func (c *capturing) open(stdout io.Writer) (w io.Writer, finish func() error, err error) {
	if c.file == "-" {
		return stdout, func() error { return nil }, nil
	}
	f, err := os.OpenFile(c.file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("opening -w: %w", err)
	}
	return f, f.Close, nil
}

// isUnread reports whether w is a pipe or a socket whose other end is closed.
func isUnread(w io.Writer) (is bool) {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	if conn, err := f.SyscallConn(); err == nil {
		_ = conn.Control(func(fd uintptr) {
			p := []unix.PollFd{{Fd: int32(fd)}}
			_, err := unix.Poll(p, 0)
			is = err == nil && p[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0
		})
	}
	return is
}

var errUnread = errors.New("nobody reads what is written any more")

// follow writes packets until the context ends, which is not an error, or the pod does,
// or there are enough. why says what has ended it, if not the caller.
func (c *capturing) follow(ctx context.Context, w io.Writer) (why string, err error) {
	ended := make(chan error, 1)
	go func() { ended <- c.write(w) }()
	look := time.NewTicker(captureLook)
	defer look.Stop()
	for {
		select {
		case err := <-ended:
			if errors.Is(err, engine.ErrPodGone) {
				return "; the pod has ended, or its " + engine.PodLink + " was taken away or down", nil
			}
			return "", err
		case <-ctx.Done():
			return "", c.stop(ended)
		case <-look.C:
			// The tap itself would keep the pod's network namespace alive.
			if errors.Is(c.netns.Check(), engine.ErrPodGone) {
				return "; the pod has ended", c.stop(ended)
			}
			if isUnread(w) {
				return "", errUnread
			}
			if since := c.since.Load(); since != 0 && time.Since(time.Unix(0, since)) > c.stall {
				return "", fmt.Errorf("nobody has read what is written for %v", c.stall)
			}
		}
	}
}

// stop ends the capture: what has passed until now is still written.
func (c *capturing) stop(ended <-chan error) error {
	c.tap.Stop()
	select {
	case err := <-ended:
		if errors.Is(err, engine.ErrPodGone) { // at the same time
			return nil
		}
		return err
	case <-time.After(captureLast):
		return fmt.Errorf("what was captured last could not be written within %v", captureLast)
	}
}

// write writes packets until the tap is stopped, or its link ends, which is
// ErrPodGone once all is written. It holds one at a time, and a
// buffer: what it is too slow for waits in the kernel, which drops what is too much.
func (c *capturing) write(w io.Writer) error {
	buf := bufio.NewWriterSize(timedWriter{w, &c.since}, 1<<16)
	p := newPcapng(buf, engine.PodLink, c.bytes)
	gone := false
	for n := 0; c.count == 0 || n < c.count; {
		f, err := c.next(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if errors.Is(err, engine.ErrPodGone) {
			// The kernel says so before it hands over what has passed until then.
			gone = true
			c.tap.Stop()
			continue
		}
		if err != nil {
			return errors.Join(err, c.end(p, buf))
		}
		if err := p.packet(f); err != nil {
			return fmt.Errorf("writing the captured packets: %w", err)
		}
		n++
		c.packets.Add(1)
		if f.Partial {
			c.partial.Add(1)
		}
	}
	if err := c.end(p, buf); err != nil || !gone {
		return err
	}
	return engine.ErrPodGone
}

// next returns the next packet. While there is none, all is written. The end is
// os.ErrDeadlineExceeded.
func (c *capturing) next(buf *bufio.Writer) (engine.Frame, error) {
	f, err := c.tap.Read(false)
	if errors.Is(err, engine.ErrNoFrame) {
		if err := buf.Flush(); err != nil {
			return f, fmt.Errorf("writing the captured packets: %w", err)
		}
		if f, err = c.tap.Read(true); errors.Is(err, os.ErrDeadlineExceeded) {
			// What has come since the first look, and before the end.
			if f, err = c.tap.Read(false); errors.Is(err, engine.ErrNoFrame) {
				err = os.ErrDeadlineExceeded
			}
		}
	}
	return f, err
}

// end writes the file's end.
func (c *capturing) end(p *pcapng, buf *bufio.Writer) error {
	had, dropped, err := c.countDrops()
	if err != nil {
		return err
	}
	if err := errors.Join(p.counts(time.Now(), had, dropped), buf.Flush()); err != nil {
		return fmt.Errorf("writing the captured packets: %w", err)
	}
	return nil
}

// timedWriter notes since when a write goes on.
type timedWriter struct {
	io.Writer
	since *atomic.Int64
}

func (w timedWriter) Write(p []byte) (int, error) {
	w.since.Store(time.Now().UnixNano())
	defer w.since.Store(0)
	return w.Writer.Write(p)
}
