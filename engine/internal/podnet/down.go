// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"time"

	"golang.org/x/sys/unix"
)

// lookAgain is the pause between two looks at a link that is down. A link that is about
// to go has usually gone by the second look.
const lookAgain = 50 * time.Millisecond

// wentDown finds out whether the link is down or gone. The socket reports the same for
// both, and nothing when a link goes that was down already.
func (d *Device) wentDown() {
	if d.down.CompareAndSwap(false, true) {
		d.lookWhetherGone()
	}
}

func (d *Device) lookWhetherGone() {
	index, up := 0, false
	if err := d.conn.Control(func(fd uintptr) { index, up = interfaceOf(int(fd)) }); err != nil {
		return // closed
	}
	switch {
	case index <= 0:
		d.goneOnce.Do(func() { close(d.gone) })
	case up:
		d.down.Store(false)
	default:
		time.AfterFunc(lookAgain, d.lookWhetherGone)
	}
}

// interfaceOf returns the interface that the packet socket is bound to, -1 if that is
// gone, and whether it is up.
func interfaceOf(fd int) (index int, up bool) {
	addr, err := unix.Getsockname(fd)
	if err != nil {
		return -1, false
	}
	ll, ok := addr.(*unix.SockaddrLinklayer)
	if !ok || ll.Ifindex <= 0 {
		return -1, false
	}
	ifr, err := unix.NewIfreq("index")
	if err != nil {
		return ll.Ifindex, false
	}
	ifr.SetUint32(uint32(ll.Ifindex))
	if unix.IoctlIfreq(fd, unix.SIOCGIFNAME, ifr) != nil || unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr) != nil {
		return ll.Ifindex, false
	}
	return ll.Ifindex, ifr.Uint16()&unix.IFF_UP != 0
}
