// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// message is a frame as sendmmsg takes it, to be cut or not.
func message(cut bool) mmsghdr {
	var vnet [vnetHdrLen]byte
	if cut {
		vnet[1] = unix.VIRTIO_NET_HDR_GSO_TCPV4
	}
	iov := &unix.Iovec{Base: &vnet[0]}
	var m mmsghdr
	m.hdr.Iov = iov
	return m
}

// TestCuttingIsTriedAgain: a kernel that refuses a frame that it is to cut gets
// single packets for a while, longer each time, until it takes one again.
func TestCuttingIsTriedAgain(t *testing.T) {
	var clock atomic.Int64
	var told []time.Duration
	c := cutting{clock: clock.Load, told: func(pause time.Duration) { told = append(told, pause) }}
	clock.Store(int64(time.Hour))
	send := func(cut bool, err error) {
		t.Helper()
		var a attempt
		msgs := []mmsghdr{message(cut)}
		for len(msgs) > 0 {
			n := 0
			if err == nil {
				n = 1
			}
			var failed error
			if msgs, failed = a.rest(msgs, n, err, &c); failed != nil {
				t.Fatal(failed)
			}
		}
	}

	send(false, unix.EINVAL)
	if c.off() || c.refusals.Load() != 0 {
		t.Fatal("a frame that needs no cutting was refused, and cutting is off")
	}
	for _, pause := range []time.Duration{10 * time.Second, 20 * time.Second, 40 * time.Second} {
		send(true, unix.EINVAL)
		clock.Add(int64(pause) - 1)
		if !c.off() {
			t.Errorf("cutting is tried again before %v are over", pause)
		}
		send(false, nil)
		if clock.Add(1); c.off() {
			t.Errorf("cutting is not tried again after %v", pause)
		}
	}
	for range 20 {
		send(true, unix.EINVAL)
	}
	if clock.Add(int64(cutLongest)); c.off() {
		t.Errorf("cutting is not tried again after %v", cutLongest)
	}
	if n := c.refusals.Load(); n != 23 || len(told) != 1 || told[0] != cutPause {
		t.Errorf("expected 23 refusals and one word of them, saw %d and %v", n, told)
	}
	send(true, nil)
	send(true, unix.EINVAL)
	if clock.Add(int64(cutPause)); c.off() || len(told) != 2 {
		t.Errorf("expected the first pause again and a second word after a frame was taken, saw %v", told)
	}
}

// TestRefusedCuttingSendsSinglePackets: while cutting is off segments are not
// coalesced, and afterwards they are again.
func TestRefusedCuttingSendsSinglePackets(t *testing.T) {
	l := newSender(make([]byte, 6), make([]byte, 6), true)
	var clock atomic.Int64
	l.cut.clock = clock.Load
	frames := func() int {
		l.reset()
		for i := range 4 {
			l.add(packetSpec{seq: uint32(1000 * i), payload: 1000}.build())
		}
		return len(l.messages())
	}
	if n := frames(); n != 1 {
		t.Fatalf("four segments of a flow became %d frames, want 1", n)
	}
	clock.Store(1)
	l.cut.refused()
	if n := frames(); n != 4 {
		t.Errorf("while the kernel cuts nothing four segments became %d frames, want 4", n)
	}
	clock.Add(int64(cutPause))
	if n := frames(); n != 1 {
		t.Errorf("after the pause four segments became %d frames, want 1", n)
	}
}
