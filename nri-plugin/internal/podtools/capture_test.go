// SPDX-License-Identifier: BSD-3-Clause

package podtools

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/settings"
	"tailscale-nri/nri-plugin/internal/statussocket"
)

// captured is what a file has, as a reader that goes by the format's draft finds it.
type captured struct {
	link         string
	packets      []engine.Frame
	had, dropped uint64
	whole        bool // it has its end
}

// readCapture reads a pcapng file of one section and one interface.
func readCapture(r io.Reader) (c captured, err error) {
	for {
		var head [8]byte
		if _, err := io.ReadFull(r, head[:]); err == io.EOF {
			return c, nil
		} else if err != nil {
			return c, err
		}
		kind, size := binary.NativeEndian.Uint32(head[:]), binary.NativeEndian.Uint32(head[4:])
		if size%4 != 0 || size < 12 || size > 1<<20 {
			return c, fmt.Errorf("block %#x of %d bytes", kind, size)
		}
		body := make([]byte, size-8)
		if _, err := io.ReadFull(r, body); err != nil {
			return c, err
		}
		end := len(body) - 4
		if again := binary.NativeEndian.Uint32(body[end:]); again != size {
			return c, fmt.Errorf("block %#x of %d bytes, and of %d at its end", kind, size, again)
		}
		if err := c.block(kind, body[:end]); err != nil {
			return c, err
		}
	}
}

func (c *captured) block(kind uint32, body []byte) error {
	u32 := func(at int) uint32 { return binary.NativeEndian.Uint32(body[at:]) }
	switch kind {
	case 0x0A0D0D0A:
		if u32(0) != 0x1A2B3C4D || u32(4) != 1 {
			return fmt.Errorf("section %x", body)
		}
	case 1:
		o := options(body[8:])
		if u32(0) != 1 || o[9][0] != 9 {
			return fmt.Errorf("interface %x", body)
		}
		c.link = string(o[2])
	case 5:
		o := options(body[12:])
		c.had, c.dropped, c.whole = binary.NativeEndian.Uint64(o[4]), binary.NativeEndian.Uint64(o[5]), true
	case 6:
		n := int(u32(12))
		o := options(body[20+(n+3)/4*4:])
		c.packets = append(c.packets, engine.Frame{
			At: time.Unix(0, int64(u32(4))<<32|int64(u32(8))), Data: body[20 : 20+n], Length: int(u32(16)),
			Outgoing: binary.NativeEndian.Uint32(o[2]) == 2,
		})
	default:
		return fmt.Errorf("block %#x", kind)
	}
	return nil
}

func options(b []byte) map[uint16][]byte {
	all := map[uint16][]byte{}
	for len(b) >= 4 {
		code, n := binary.NativeEndian.Uint16(b), int(binary.NativeEndian.Uint16(b[2:]))
		if code == 0 {
			break
		}
		all[code] = b[4 : 4+n]
		b = b[4+(n+3)/4*4:]
	}
	return all
}

// payload has the bytes that TCP segments of one direction to or from port 7 carry, each
// once: a kernel that waits long for an answer sends the last ones again.
func (c captured) payload(outgoing bool) (all []byte) {
	next := map[string]uint32{} // sequence number, by addresses and ports
	for _, p := range c.packets {
		ip := p.Data[14:]
		if p.Outgoing != outgoing || ip[0]>>4 != 4 || ip[9] != unix.IPPROTO_TCP {
			continue
		}
		total := int(binary.BigEndian.Uint16(ip[2:]))
		tcp := ip[int(ip[0]&15)*4 : total]
		data, seq := tcp[int(tcp[12]>>4)*4:], binary.BigEndian.Uint32(tcp[4:])
		if len(data) == 0 {
			continue
		}
		flow := string(ip[12:20]) + string(tcp[:4])
		if was, known := next[flow]; known {
			again := min(len(data), max(0, int(int32(was-seq))))
			data, seq = data[again:], seq+uint32(again)
		}
		if len(data) > 0 {
			all, next[flow] = append(all, data...), seq+uint32(len(data))
		}
	}
	return all
}

// listening waits until a capture listens.
func listening(t *testing.T, cmd *exec.Cmd) (ended chan error, book *plugintest.LogBook) {
	t.Helper()
	book, ended = plugintest.NewLogBook(), make(chan error, 1)
	cmd.Stderr = book
	plugintest.Must(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill() })
	book.Wait(t, "listening on ts0 of default/a", 1)
	go func() { ended <- cmd.Wait() }()
	return ended, book
}

// TestCapture: a capture has what passes ts0 in both directions, in a file that is
// whole however it ends, but for one that nobody reads.
func TestCapture(t *testing.T) {
	if !onOwnHost(t) {
		return
	}
	r := newRig(t)
	a, nodeA := r.pod("a")
	b, nodeB := r.pod("b")
	a.swallow()
	b.swallow()
	data := bytes.Repeat([]byte("0123456789abcdef"), 20_000) // 320 kB, in frames of up to 64 kB
	a.send(nodeB.Addresses[0], data[:16])                    // they know each other now

	t.Run("SIGINT", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "a.pcapng")
		cmd := r.process("capture", "-w", file, "a")
		ended, book := listening(t, cmd)
		a.send(nodeB.Addresses[0], data)
		b.send(nodeA.Addresses[0], data[:160_000])
		plugintest.Must(t, cmd.Process.Signal(syscall.SIGINT))
		if err := plugintest.Receive(t, ended, "the end"); err != nil {
			t.Errorf("%v\n%s", err, book)
		}
		fi, err := os.Stat(file)
		plugintest.Must(t, err)
		f, err := os.Open(file)
		plugintest.Must(t, err)
		defer f.Close()
		c, err := readCapture(f)
		if err != nil || !c.whole || c.dropped != 0 || c.link != "ts0" || fi.Mode().Perm() != 0o600 {
			t.Errorf("whole %v, %d dropped, link %q, mode %v, %v", c.whole, c.dropped, c.link, fi.Mode(), err)
		}
		if !bytes.Equal(c.payload(true), data) || !bytes.Equal(c.payload(false), data[:160_000]) {
			t.Errorf("it has %d bytes out and %d in, was to have %d and %d", len(c.payload(true)), len(c.payload(false)), len(data), 160_000)
		}
		if want := fmt.Sprintf("%d packets captured, 0 dropped by the kernel; ", len(c.packets)); book.Count(want) != 1 || c.had < uint64(len(c.packets)) {
			t.Errorf("it does not say %q:\n%s", want, book)
		}
		if to := os.Getenv("TSNRI_TEST_CAPTURE"); to != "" { // for another reader
			all, err := os.ReadFile(file)
			plugintest.Must(t, err)
			plugintest.Must(t, os.WriteFile(to, all, 0o600))
		}
	})
	t.Run("pipe", func(t *testing.T) {
		cmd := r.process("capture", "a", "-s", "54")
		out, err := cmd.StdoutPipe()
		plugintest.Must(t, err)
		ended, _ := listening(t, cmd)
		a.send(nodeB.Addresses[0], data)
		var some [2000]byte
		if _, err := io.ReadFull(out, some[:]); err != nil {
			t.Error(err) // it writes while it captures
		}
		plugintest.Must(t, out.Close())
		if err := plugintest.Receive(t, ended, "the end"); err == nil { // though nothing passes any more
			t.Error("it has ended with 0")
		}
	})
	t.Run("pipe under traffic", func(t *testing.T) {
		cmd := r.process("capture", "a")
		out, err := cmd.StdoutPipe()
		plugintest.Must(t, err)
		ended, _ := listening(t, cmd)
		plugintest.Must(t, out.Close())
		a.send(nodeB.Addresses[0], data)
		if err := plugintest.Receive(t, ended, "the end"); err == nil { // of SIGPIPE, most often
			t.Error("it has ended with 0")
		}
	})
	t.Run("limits", func(t *testing.T) {
		stop := make(chan struct{})
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for {
				select {
				case <-stop:
					return
				default:
					a.send(nodeB.Addresses[0], data[:16])
				}
			}
		}()
		code, stdout, stderr := r.call("capture", "-c", "5", "-s", "20", "a")
		close(stop)
		<-ended
		c, err := readCapture(strings.NewReader(stdout))
		if code != 0 || err != nil || len(c.packets) != 5 || len(c.packets[0].Data) != 20 || c.packets[0].Length < 54 || !c.whole {
			t.Errorf("-c 5: %d %d packets, %v\n%s", code, len(c.packets), err, stderr)
		}
		if code, stdout, stderr := r.call("capture", "-d", "50ms", "a"); code != 0 || !strings.HasPrefix(stdout, "\n\r\r\n") {
			t.Errorf("-d: %d\n%s", code, stderr)
		}
	})
	t.Run("errors", func(t *testing.T) {
		terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
		plugintest.Must(t, err)
		defer terminal.Close()
		err = Run(t.Context(), "capture", []string{"a"}, plugintest.Environment(map[string]string{settings.StatusSocket: r.socket}), terminal, io.Discard)
		if !errors.As(err, new(statussocket.CannotAsk)) || !plugintest.ErrContains(err, "standard output is a terminal") {
			t.Errorf("to a terminal: %v", err)
		}
		if code, _, stderr := r.call("capture", "a", "-w", "/nowhere/file"); code != 2 || !strings.Contains(stderr, "opening -w") {
			t.Errorf("%d %s", code, stderr)
		}
		if code, _, stderr := r.call("capture", "web"); code != 2 || !strings.Contains(stderr, "there are default/a, default/b") {
			t.Errorf("%d %s", code, stderr)
		}
	})
	t.Run("stalled reader", func(t *testing.T) {
		pr, pw, err := os.Pipe()
		plugintest.Must(t, err)
		defer pr.Close()
		c := &capturing{stall: 500 * time.Millisecond, file: "-"}
		pod, err := newPodClient(r.socket, "a")
		plugintest.Must(t, err)
		ended := make(chan error, 1)
		go func() { ended <- c.run(context.Background(), pod, toolIO{stdout: pw, stderr: io.Discard}) }()
		for c.since.Load() == 0 || c.packets.Load() < 3 { // the pipe takes 64 kB
			a.send(nodeB.Addresses[0], data)
		}
		if err := plugintest.Receive(t, ended, "the end"); !errors.As(err, new(noAnswer)) || !plugintest.ErrContains(err, "nobody has read what is written for 500ms") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("end of the pod", func(t *testing.T) {
		cmd := r.process("capture", "a")
		out, err := cmd.StdoutPipe()
		plugintest.Must(t, err)
		book := plugintest.NewLogBook()
		cmd.Stderr = book
		plugintest.Must(t, cmd.Start())
		t.Cleanup(func() { cmd.Process.Kill() })
		book.Wait(t, "listening on ts0 of default/a", 1)
		a.send(nodeB.Addresses[0], data) // more than the pipe takes: it waits in the kernel
		plugintest.Must(t, r.engine.Detach(t.Context(), a.spec.SandboxID))
		r.await("a", engine.Stopped)
		c, err := readCapture(out)
		if err != nil || !c.whole || c.had != uint64(len(c.packets)) || c.dropped != 0 {
			t.Errorf("whole %v, %d packets of %d, %d dropped, %v", c.whole, len(c.packets), c.had, c.dropped, err)
		}
		if got := c.payload(true); !bytes.Equal(got, data) {
			t.Errorf("it has %d bytes out, was to have %d", len(got), len(data))
		}
		if err := cmd.Wait(); err != nil || book.Count("; the pod has ended") != 1 {
			t.Errorf("%v\n%s", err, book)
		}
		if code, _, stderr := r.call("capture", "a"); code != 2 || !strings.Contains(stderr, "it is Stopped") {
			t.Errorf("%d %s", code, stderr)
		}
	})
}
