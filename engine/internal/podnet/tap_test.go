// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"bytes"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tailscale-nri/engine/internal/nstest"
)

// tapOf opens a tap in the pod.
func tapOf(t *testing.T, pod *nstest.Pod, limit int) *Tap {
	t.Helper()
	ns, err := FindNamespace(pod.Path())
	if err != nil {
		t.Fatal(err)
	}
	tap, err := ns.OpenTap(limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tap.Close() })
	return tap
}

// send sends bytes as a UDP packet of the pod to addr.
func send(t *testing.T, pod *nstest.Pod, addr string, b []byte) {
	t.Helper()
	var c net.Conn
	pod.Do(func() (err error) {
		c, err = net.Dial("udp", addr)
		return err
	})
	defer c.Close()
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
}

// TestTap: what the pod sends is seen, whole or as much of it as is wanted, and so is
// what it gets.
func TestTap(t *testing.T) {
	p := newTestPod(t, 1)
	whole, cut := tapOf(t, p.Pod, 0), tapOf(t, p.Pod, 30)
	payload := bytes.Repeat([]byte("tap"), 300)
	before := time.Now()
	send(t, p.Pod, "100.64.0.99:9", payload)
	find := func(tap *Tap, outgoing bool, length int) Frame {
		t.Helper()
		for {
			f, err := tap.Read(true)
			if err != nil {
				t.Fatal(err)
			}
			if f.Outgoing == outgoing && f.Length == length {
				return f
			}
		}
	}
	length := ethHdrLen + 20 + 8 + len(payload)
	f := find(whole, true, length)
	if !bytes.HasSuffix(f.Data, payload) || len(f.Data) != length || !f.Partial {
		t.Errorf("got %d bytes of %d, checksum left to others: %v", len(f.Data), f.Length, f.Partial)
	}
	if f.At.Before(before.Add(-time.Second)) || f.At.After(time.Now()) {
		t.Errorf("at %v, was sent at %v", f.At, before)
	}
	if f := find(cut, true, length); len(f.Data) != 30 {
		t.Errorf("got %d bytes, wanted 30", len(f.Data))
	}
	packet := append([]byte{0x45, 0, 0, 24, 0, 0, 0, 0, 64, 253, 0, 0, 100, 64, 0, 99, 100, 64, 0, 1}, "back"...)
	d := mustOpen(t, p.link)
	if _, err := d.Write([][]byte{append(make([]byte, 64), packet...)}, 64); err != nil {
		t.Fatal(err)
	}
	if f := find(whole, false, ethHdrLen+len(packet)); !bytes.HasSuffix(f.Data, []byte("back")) || f.Partial {
		t.Errorf("got %q, checksum left to others: %v", f.Data, f.Partial)
	}
}

// TestTapDrops: frames that are not read are dropped and counted, and the rest stays
// with the tap.
func TestTapDrops(t *testing.T) {
	p := newTestPod(t, 1)
	tap := tapOf(t, p.Pod, 0)
	if err := tap.conn.Control(func(fd uintptr) {
		if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096); err != nil {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	for range 200 {
		send(t, p.Pod, "100.64.0.99:9", make([]byte, 1000))
	}
	had, dropped, err := tap.Counts()
	if err != nil || had < 200 || dropped == 0 || dropped >= had {
		t.Errorf("%d frames, %d dropped, %v", had, dropped, err)
	}
	read := uint64(0)
	for {
		if _, err := tap.Read(false); errors.Is(err, ErrNoFrame) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		read++
	}
	if read != had-dropped {
		t.Errorf("%d frames are left, of %d without %d", read, had, dropped)
	}
}

// TestTapEnds: by Stop, after which what was there is still read, and with the link.
func TestTapEnds(t *testing.T) {
	p := newTestPod(t, 1)
	tap := tapOf(t, p.Pod, 0)
	send(t, p.Pod, "100.64.0.99:9", []byte("last"))
	tap.Stop()
	send(t, p.Pod, "100.64.0.99:9", []byte("too late"))
	if _, err := tap.Read(true); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("it waits: %v", err)
	}
	seen := false
	for {
		f, err := tap.Read(false)
		if errors.Is(err, ErrNoFrame) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		seen = seen || bytes.HasSuffix(f.Data, []byte("last"))
		if bytes.HasSuffix(f.Data, []byte("too late")) {
			t.Error("it has what was sent after its end")
		}
	}
	if !seen {
		t.Error("it has lost what was sent before its end")
	}
	other := tapOf(t, p.Pod, 0)
	ended := make(chan error)
	go func() {
		for {
			if _, err := other.Read(true); err != nil {
				ended <- err
				return
			}
		}
	}()
	if err := Remove(p.link.Host); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, ErrGone) {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("it waits for a link that has gone")
	}
	ns, err := FindNamespace(p.Path())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ns.OpenTap(0); !errors.Is(err, ErrGone) {
		t.Errorf("a tap without a link: %v", err)
	}
}

// TestInspectNamespace: what is in the pod, and not what is here.
func TestInspectNamespace(t *testing.T) {
	p := newTestPod(t, 1)
	ns, err := FindNamespace(p.Path())
	if err != nil {
		t.Fatal(err)
	}
	v, err := ns.Inspect()
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, l := range v.Links {
		names[l.Name] = true
	}
	if !names[PodLink] || names[p.link.Host] || len(v.Rules) < 3 {
		t.Errorf("got %+v", v)
	}
}
