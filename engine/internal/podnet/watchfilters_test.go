// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// newFilterWatch hears nothing yet, of two pods of which the first has a filter.
func newFilterWatch(t *testing.T) (c *cluster, w *Watch, other chan Change) {
	t.Helper()
	c = newCluster(t, "tsgen", useExit)
	plain := newTestPod(t, 1)
	w, err := OpenWatch()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(w.fd); w.events.Load().file.Close() })
	if err := w.openFilters(); err != nil {
		t.Fatal(err)
	}
	other = make(chan Change, 1000)
	w.Add(c.link, func(Change) {})
	w.Add(plain.link, func(ch Change) { other <- ch })
	return c, w, other
}

func (c *cluster) reinstall(t *testing.T) {
	t.Helper()
	if err := c.router.exit.table.install(c.link.NS, c.router.exit.chains); err != nil {
		t.Fatal(err)
	}
}

// Of a transaction, whatever is in it, one message comes.
func TestGenerationsAreHeard(t *testing.T) {
	c, w, _ := newFilterWatch(t)
	sock := w.filterEvents.Load()
	defer sock.file.Close()
	c.reinstall(t)
	kinds := map[uint16]int{}
	err := sock.conn.Control(func(fd uintptr) {
		for buf := make([]byte, 64<<10); ; {
			n, _, err := unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
			if errors.Is(err, unix.EAGAIN) {
				return
			}
			if err != nil || n < unix.NLMSG_HDRLEN {
				t.Fatalf("%d bytes: %v", n, err)
			}
			kinds[binary.NativeEndian.Uint16(buf[4:])]++
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	// Other tests may be at work in netns of their own, of which this one hears as well.
	if len(kinds) != 1 || kinds[generation] < len(families()) {
		t.Errorf("heard %v, want %#x alone", kinds, generation)
	}
}

// Where messages of nftables were lost, pods that have no filter are left alone.
func TestLostGenerations(t *testing.T) {
	c, w, other := newFilterWatch(t)
	sock := w.filterEvents.Load()
	err := sock.conn.Control(func(fd uintptr) {
		if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		c.reinstall(t)
	}
	done := make(chan struct{})
	defer close(done)
	go w.run(done, func(err error) { t.Error(err) }, w.filterHandler())
	lost := <-other
	if plain := c.link.Router(nil, nil, nil); plain.MayAffect(lost) || !c.router.MayAffect(lost) {
		t.Errorf("it is taken as %+v", lost)
	}
}
