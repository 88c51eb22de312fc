// SPDX-License-Identifier: BSD-3-Clause

package podtools

import (
	"encoding/binary"
	"io"
	"time"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/buildinfo"
)

// A capture is written in the format pcapng (draft-ietf-opsawg-pcapng), since that
// has the direction of each packet and how many were dropped, which pcap has not.

const (
	pcapngSection    = 0x0A0D0D0A
	pcapngInterface  = 1
	pcapngStatistics = 5
	pcapngPacket     = 6

	pcapngByteOrder = 0x1A2B3C4D
	linkTypeEN10MB  = 1

	// Options.
	pcapngUserAppl  = 4 // of a section
	pcapngIfName    = 2 // of an interface
	pcapngTSResol   = 9
	pcapngFlags     = 2 // of a packet
	pcapngIfRecv    = 4 // of statistics
	pcapngIfDrop    = 5
	pcapngNanoDigit = 9 // time stamps in 10^-9 s

	// Of a packet's flags.
	pcapngInbound, pcapngOutbound = 1, 2
)

// pcapng writes a file with one interface. After an error it writes no more.
type pcapng struct {
	w   io.Writer
	buf []byte
	err error
}

// newPcapng writes the file's head. limit is of each packet, in bytes; 0 is none.
func newPcapng(w io.Writer, link string, limit int) *pcapng {
	p := &pcapng{w: w}
	body := binary.NativeEndian.AppendUint32(nil, pcapngByteOrder)
	body = binary.NativeEndian.AppendUint16(body, 1) // version 1.0
	body = binary.NativeEndian.AppendUint16(body, 0)
	body = binary.NativeEndian.AppendUint64(body, 1<<64-1) // length not known
	body = option(body, pcapngUserAppl, []byte("tailscale-nri "+buildinfo.Version()))
	p.block(pcapngSection, endOptions(body))

	body = binary.NativeEndian.AppendUint16(nil, linkTypeEN10MB)
	body = binary.NativeEndian.AppendUint16(body, 0)
	body = binary.NativeEndian.AppendUint32(body, uint32(limit))
	body = option(body, pcapngIfName, []byte(link))
	body = option(body, pcapngTSResol, []byte{pcapngNanoDigit})
	p.block(pcapngInterface, endOptions(body))
	return p
}

// packet writes one.
func (p *pcapng) packet(f engine.Frame) error {
	body := binary.NativeEndian.AppendUint32(p.buf[:0], 0) // interface
	body = appendTime(body, f.At)
	body = binary.NativeEndian.AppendUint32(body, uint32(len(f.Data)))
	body = binary.NativeEndian.AppendUint32(body, uint32(f.Length))
	body = padded(append(body, f.Data...))
	direction := uint32(pcapngInbound)
	if f.Outgoing {
		direction = pcapngOutbound
	}
	body = option(body, pcapngFlags, binary.NativeEndian.AppendUint32(nil, direction))
	p.buf = endOptions(body)
	p.block(pcapngPacket, p.buf)
	return p.err
}

// counts writes how many packets there were, and how many of them are missing.
func (p *pcapng) counts(at time.Time, had, dropped uint64) error {
	body := appendTime(binary.NativeEndian.AppendUint32(nil, 0), at)
	body = option(body, pcapngIfRecv, binary.NativeEndian.AppendUint64(nil, had))
	body = option(body, pcapngIfDrop, binary.NativeEndian.AppendUint64(nil, dropped))
	p.block(pcapngStatistics, endOptions(body))
	return p.err
}

// block writes a block of a body that is padded.
func (p *pcapng) block(kind uint32, body []byte) {
	size := uint32(len(body) + 12)
	head := binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint32(nil, kind), size)
	for _, part := range [][]byte{head, body, head[4:]} {
		if p.err == nil {
			_, p.err = p.w.Write(part)
		}
	}
}

// appendTime appends a time stamp, whose upper half is first in either byte order.
func appendTime(b []byte, t time.Time) []byte {
	ns := uint64(t.UnixNano())
	return binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint32(b, uint32(ns>>32)), uint32(ns))
}

func option(b []byte, code uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, code)
	b = binary.NativeEndian.AppendUint16(b, uint16(len(value)))
	return padded(append(b, value...))
}

func endOptions(b []byte) []byte { return append(b, 0, 0, 0, 0) }

// padded appends zeros up to a multiple of 4. All that comes before it in a block is
// one already.
func padded(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}
