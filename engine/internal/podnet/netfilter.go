// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// text0 is a string as netlink attributes have it.
func text0(s string) []byte { return append([]byte(s), 0) }

// nfAttr appends a netlink attribute, which is a multiple of four bytes long.
func nfAttr(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofNlAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, (4-len(value)%4)%4)...)
}

// nfMessage appends a message to netfilter (struct nlmsghdr and nfgenmsg). Its
// resource is of network byte order.
func nfMessage(b []byte, kind int, family uint8, resource, flags uint16, attrs []byte) []byte {
	const generic = 4
	b = binary.NativeEndian.AppendUint32(b, uint32(unix.SizeofNlMsghdr+generic+len(attrs)))
	b = binary.NativeEndian.AppendUint16(b, uint16(kind))
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = binary.NativeEndian.AppendUint32(b, uint32(len(b)))
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, family, unix.NFNETLINK_V0)
	b = binary.BigEndian.AppendUint16(b, resource)
	return append(b, attrs...)
}

// nfAnswer reads one answer and returns the error in it.
func nfAnswer(fd int) error {
	buf := make([]byte, 8192)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return fmt.Errorf("waiting for netfilter: %w", err)
	}
	if n < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(buf[4:]) != unix.NLMSG_ERROR {
		return errors.New("netfilter answered something else than an acknowledgement")
	}
	if code := int32(binary.NativeEndian.Uint32(buf[unix.SizeofNlMsghdr:])); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}
