// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// rtnl is a rtnetlink socket in one network namespace. It sends several requests in one
// message. A system call that waits for the kernel's lock of all interfaces costs the
// goroutine its place on a processor, and to get one back it waits behind the work of
// all nodes, so that the number of calls makes the time that a pod's start is held up.
type rtnl struct{ *nl.NetlinkSocket }

// openRtnl opens a socket in ns; [netns.None] is the netns of this process.
func openRtnl(ns netns.NsHandle) (rtnl, error) {
	s, err := openNetlink(ns, unix.NETLINK_ROUTE)
	return rtnl{s}, err
}

// openNetlink opens a socket to which the kernel alone can send. A pod with
// CAP_NET_ADMIN could otherwise send to it what looks like the kernel's answers. What it
// sends before the socket is connected, [receive] leaves out.
func openNetlink(ns netns.NsHandle, protocol int) (*nl.NetlinkSocket, error) {
	s, err := nl.GetNetlinkSocketAt(ns, netns.None(), protocol)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(s.GetFd(), &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		s.Close()
		return nil, fmt.Errorf("connecting it to the kernel: %w", err)
	}
	return s, nil
}

// receive reads the next message of the kernel into buf, without waiting for one, and
// returns its size in bytes. The error is of recvfrom(2), EAGAIN where there is none.
func receive(s *nl.NetlinkSocket, buf []byte) (int, error) {
	for {
		n, from, err := unix.Recvfrom(s.GetFd(), buf, unix.MSG_DONTWAIT)
		switch a, _ := from.(*unix.SockaddrNetlink); {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, err
		case a != nil && a.Pid == nl.PidKernel:
			return n, nil
		}
	}
}

// answerBuffers are of the size that no message of rtnetlink exceeds: its attributes
// have 16 bits for their size.
var answerBuffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

var errAnswer = errors.New("rtnetlink has answered with something else")

// answer is the kernel's answer to one request.
type answer struct {
	msg []byte // of a request that asks for something: what follows the header
	err error
}

// do sends the requests in one message, and returns the answer to each. The kernel
// takes them in their order, and goes on after one that it has refused. err means that
// it is not known what became of them.
//
// By the time that the kernel has taken the message, it has answered all of it
// (net/netlink/af_netlink.c, netlink_rcv_skb).
func (s rtnl) do(requests ...*nl.NetlinkRequest) (answers []answer, err error) {
	var buf []byte
	last := uint32(len(requests))
	for i, r := range requests {
		r.Seq = uint32(i) + 1
		// Each answer is a system call: only what was refused is answered, what was
		// asked for, and the last.
		if r.Seq == last {
			r.Flags |= unix.NLM_F_ACK
		}
		buf = append(buf, r.Serialize()...)
	}
	if err := unix.Sendto(s.GetFd(), buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("asking the kernel by rtnetlink: %w", err)
	}
	answers = make([]answer, last)
	pooled := answerBuffers.Get().(*[64 << 10]byte)
	defer answerBuffers.Put(pooled)
	for done := false; !done; {
		n, err := receive(s.NetlinkSocket, pooled[:])
		if err != nil {
			return nil, fmt.Errorf("reading what rtnetlink answers: %w", err)
		}
		if done, err = readAnswers(answers, pooled[:n]); err != nil {
			return nil, err
		}
	}
	return answers, nil
}

// readAnswers reads a datagram of answers. It reports whether the last one is among them.
func readAnswers(answers []answer, raw []byte) (done bool, err error) {
	for last := uint32(len(answers)); len(raw) >= unix.SizeofNlMsghdr; {
		size := int(binary.NativeEndian.Uint32(raw))
		kind, seq := binary.NativeEndian.Uint16(raw[4:]), binary.NativeEndian.Uint32(raw[8:])
		if size < unix.SizeofNlMsghdr || size > len(raw) || seq == 0 || seq > last {
			return false, errAnswer
		}
		a, body := &answers[seq-1], raw[unix.SizeofNlMsghdr:size]
		raw = raw[min((size+3)&^3, len(raw)):]
		if kind != unix.NLMSG_ERROR {
			a.msg = bytes.Clone(body)
			continue
		}
		if len(body) < 4 {
			return false, errAnswer
		}
		if errno := -int32(binary.NativeEndian.Uint32(body)); errno != 0 {
			a.err = unix.Errno(errno)
		}
		done = done || seq == last
	}
	return done, nil
}

// all is do for requests that change something, each of which is to succeed.
func (s rtnl) all(requests ...*nl.NetlinkRequest) error {
	answers, err := s.do(requests...)
	for _, a := range answers {
		err = errors.Join(err, a.err)
	}
	return err
}

// link returns the link that an answer describes.
func (a answer) link() (netlink.Link, error) {
	switch {
	case a.err != nil:
		return nil, a.err
	case len(a.msg) < unix.SizeofIfInfomsg:
		return nil, errAnswer
	}
	return netlink.LinkDeserialize(nil, a.msg)
}

// byName returns a link, without its statistics.
func (s rtnl) byName(name string) (netlink.Link, error) {
	answers, err := s.do(getLink(name))
	if err != nil {
		return nil, err
	}
	return answers[0].link()
}

func getLink(name string) *nl.NetlinkRequest {
	const skipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS, linux/rtnetlink.h
	req := linkRequest(unix.RTM_GETLINK, 0, 0, 0)
	req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	return req
}

// setLink sets attributes of a link.
func setLink(index int, attrs ...*nl.RtAttr) *nl.NetlinkRequest {
	req := linkRequest(unix.RTM_SETLINK, index, 0, 0)
	for _, a := range attrs {
		req.AddData(a)
	}
	return req
}

// setFlags sets those flags of a link that are in mask.
func setFlags(index int, flags, mask uint32) *nl.NetlinkRequest {
	return linkRequest(unix.RTM_SETLINK, index, flags, mask)
}

func linkRequest(kind, index int, flags, mask uint32) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index, msg.Flags, msg.Change = int32(index), flags, mask
	req.AddData(msg)
	return req
}
