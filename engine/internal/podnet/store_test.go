// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"bytes"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// memoryStore is a store in this process.
type memoryStore map[string]int

func (s memoryStore) Take(name string) (int, bool) {
	fd, ok := s[name]
	delete(s, name)
	return fd, ok
}

func (s memoryStore) Keep(name string, fd int) {
	s.Drop(name)
	if dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err == nil {
		s[name] = dup
	}
}

func (s memoryStore) Drop(name string) {
	if fd, ok := s.Take(name); ok {
		unix.Close(fd)
	}
}

func (s memoryStore) Retain([]string) {}

// What a pod sends while nobody reads is read by the next to open the link's
// socket.
func TestKeptSocket(t *testing.T) {
	p := newTestPod(t, 1)
	store := memoryStore{}
	defer store.Drop(p.link.Host)
	first, err := p.link.Open(store)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	say(t, p, "while nobody listens")
	next, err := p.link.Open(store)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	hear(t, next, "while nobody listens")
	if len(store) != 0 {
		t.Errorf("the store still holds %v", store)
	}
}

// A socket of an earlier link with the same name is not used for this one.
func TestKeptSocketOfAnotherLink(t *testing.T) {
	p, other := newTestPod(t, 1), newTestPod(t, 2)
	store := memoryStore{}
	d, err := other.link.Open(store)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	store[p.link.Host] = store[other.link.Host]
	delete(store, other.link.Host)
	mine, err := p.link.Open(store)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { mine.Close(); store.Drop(p.link.Host) }()
	say(t, other, "to the other")
	say(t, p, "to this one")
	hear(t, mine, "to this one")
}

// say sends a datagram out of ts0.
func say(t *testing.T, p *testPod, text string) {
	t.Helper()
	p.Do(func() error {
		c, err := net.Dial("udp", "100.100.1.1:9")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, err = c.Write([]byte(text))
		return err
	})
}

// hear reads the text as the first datagram.
func hear(t *testing.T, d *Device, text string) {
	t.Helper()
	got := make(chan []byte, 1)
	go func() {
		b := newBatch()
		for {
			packets, err := b.read(d)
			if err != nil {
				return
			}
			for _, p := range packets {
				if p[0]>>4 == 4 && p[9] == unix.IPPROTO_UDP {
					got <- bytes.Clone(p[28:])
					return
				}
			}
		}
	}()
	select {
	case p := <-got:
		if string(p) != text {
			t.Errorf("read %q, want %q", p, text)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("nothing was read, want %q", text)
	}
}
