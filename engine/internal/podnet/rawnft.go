// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// This file writes netlink messages (linux/netfilter/nf_tables.h) for a table that ends
// with its socket. The Go library cannot make such a table (google/nftables v0.3.0,
// table.go, addTable: it sends no flags).

const (
	// nftOwned is NFT_TABLE_F_OWNER, Linux 5.12: only the socket that made the table
	// can change it. The kernel removes the table when that socket is closed, however
	// its process ends.
	nftOwned = 2

	nftRaw    = -300 // before connection tracking (NF_IP_PRI_RAW)
	nftDstNAT = -100 // NF_IP_PRI_NAT_DST
	nftSrcNAT = 100  // NF_IP_PRI_NAT_SRC

	sizeofNfgenmsg = 4

	ipsDstNAT = 1 << 5 // IPS_DST_NAT of a connection's status
)

// rawTable is a table that is deleted and created again.
type rawTable struct {
	family byte // unix.NFPROTO_IPV4 or _IPV6
	name   string
	flags  uint32
	chains []rawChain
}

type rawChain struct {
	name     string
	kind     string // "filter" or "nat"
	hook     uint32
	priority int32
	rules    [][]rawExpr
}

// rawExpr is an expression with its attributes, written.
type rawExpr struct {
	name  string
	attrs []byte
}

// nftAttr writes one attribute.
func nftAttr(kind uint16, value []byte) []byte {
	size := unix.SizeofRtAttr + len(value)
	out := make([]byte, (size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1))
	binary.NativeEndian.PutUint16(out, uint16(size))
	binary.NativeEndian.PutUint16(out[2:], kind)
	copy(out[unix.SizeofRtAttr:], value)
	return out
}

func nftNest(kind uint16, attrs ...[]byte) []byte {
	return nftAttr(kind|unix.NLA_F_NESTED, slices.Concat(attrs...))
}

func nftNumber(kind uint16, n uint32) []byte {
	return nftAttr(kind, binary.BigEndian.AppendUint32(nil, n))
}

func nftString(kind uint16, s string) []byte { return nftAttr(kind, append([]byte(s), 0)) }

func nftData(kind uint16, value []byte) []byte {
	return nftNest(kind, nftAttr(unix.NFTA_DATA_VALUE, value))
}

// nftRegister is the register that all expressions here use.
const nftRegister = unix.NFT_REG_1

// matchMeta lets packets pass that have, or do not have, this value in their metadata.
func matchMeta(key uint32, op uint32, value []byte) []rawExpr {
	return []rawExpr{
		{"meta", slices.Concat(nftNumber(unix.NFTA_META_KEY, key), nftNumber(unix.NFTA_META_DREG, nftRegister))},
		nftCompare(op, value),
	}
}

// matchBytes lets packets pass that have the value at the offset of their network or
// transport header.
func matchBytes(base, offset uint32, value []byte) []rawExpr {
	return []rawExpr{
		{"payload", slices.Concat(nftNumber(unix.NFTA_PAYLOAD_DREG, nftRegister), nftNumber(unix.NFTA_PAYLOAD_BASE, base),
			nftNumber(unix.NFTA_PAYLOAD_OFFSET, offset), nftNumber(unix.NFTA_PAYLOAD_LEN, uint32(len(value))))},
		nftCompare(unix.NFT_CMP_EQ, value),
	}
}

// matchDstNAT lets packets pass that were given another destination.
func matchDstNAT() []rawExpr {
	bits := binary.NativeEndian.AppendUint32(nil, ipsDstNAT)
	return []rawExpr{
		{"ct", slices.Concat(nftNumber(unix.NFTA_CT_KEY, unix.NFT_CT_STATUS), nftNumber(unix.NFTA_CT_DREG, nftRegister))},
		{"bitwise", slices.Concat(nftNumber(unix.NFTA_BITWISE_SREG, nftRegister), nftNumber(unix.NFTA_BITWISE_DREG, nftRegister),
			nftNumber(unix.NFTA_BITWISE_LEN, 4), nftData(unix.NFTA_BITWISE_MASK, bits), nftData(unix.NFTA_BITWISE_XOR, make([]byte, 4)))},
		nftCompare(unix.NFT_CMP_NEQ, make([]byte, 4)),
	}
}

func nftCompare(op uint32, value []byte) rawExpr {
	return rawExpr{"cmp", slices.Concat(nftNumber(unix.NFTA_CMP_SREG, nftRegister), nftNumber(unix.NFTA_CMP_OP, op), nftData(unix.NFTA_CMP_DATA, value))}
}

// dstNAT gives a packet another destination address.
func dstNAT(family byte, addr []byte) []rawExpr {
	return []rawExpr{
		{"immediate", slices.Concat(nftNumber(unix.NFTA_IMMEDIATE_DREG, nftRegister), nftData(unix.NFTA_IMMEDIATE_DATA, addr))},
		{"nat", slices.Concat(nftNumber(unix.NFTA_NAT_TYPE, unix.NFT_NAT_DNAT), nftNumber(unix.NFTA_NAT_FAMILY, uint32(family)),
			nftNumber(unix.NFTA_NAT_REG_ADDR_MIN, nftRegister))},
	}
}

// setPort gives a packet of the protocol another port, at the offset of its transport
// header.
func setPort(proto byte, offset uint32, port uint16) []rawExpr {
	checksum := uint32(6) // of UDP
	if proto == unix.IPPROTO_TCP {
		checksum = 16
	}
	return []rawExpr{
		{"immediate", slices.Concat(nftNumber(unix.NFTA_IMMEDIATE_DREG, nftRegister), nftData(unix.NFTA_IMMEDIATE_DATA, binary.BigEndian.AppendUint16(nil, port)))},
		{"payload", slices.Concat(nftNumber(unix.NFTA_PAYLOAD_SREG, nftRegister), nftNumber(unix.NFTA_PAYLOAD_BASE, unix.NFT_PAYLOAD_TRANSPORT_HEADER),
			nftNumber(unix.NFTA_PAYLOAD_OFFSET, offset), nftNumber(unix.NFTA_PAYLOAD_LEN, 2),
			nftNumber(unix.NFTA_PAYLOAD_CSUM_TYPE, unix.NFT_PAYLOAD_CSUM_INET), nftNumber(unix.NFTA_PAYLOAD_CSUM_OFFSET, checksum))},
	}
}

// rawBatch is a transaction: all of it is done, or nothing.
type rawBatch struct {
	buf  []byte
	asks int
}

func (b *rawBatch) message(kind, flags uint16, family byte, resource uint16, attrs ...[]byte) {
	body := slices.Concat(attrs...)
	size := unix.SizeofNlMsghdr + sizeofNfgenmsg + len(body)
	b.buf = binary.NativeEndian.AppendUint32(b.buf, uint32(size))
	b.buf = binary.NativeEndian.AppendUint16(b.buf, kind)
	b.buf = binary.NativeEndian.AppendUint16(b.buf, flags|unix.NLM_F_REQUEST)
	b.buf = binary.NativeEndian.AppendUint32(b.buf, uint32(b.asks))
	b.buf = append(b.buf, make([]byte, 4)...)
	b.buf = append(b.buf, family, unix.NFNETLINK_V0)
	b.buf = binary.BigEndian.AppendUint16(b.buf, resource)
	b.buf = append(b.buf, body...)
	b.asks++
}

func (b *rawBatch) ask(what, flags uint16, family byte, attrs ...[]byte) {
	b.message(unix.NFNL_SUBSYS_NFTABLES<<8|what, flags|unix.NLM_F_ACK, family, 0, attrs...)
}

// deleteTable deletes a table, which has to exist: to delete one that may not, make it
// first.
func (b *rawBatch) deleteTable(t *rawTable) {
	b.ask(unix.NFT_MSG_DELTABLE, 0, t.family, nftString(unix.NFTA_TABLE_NAME, t.name))
}

func (b *rawBatch) makeTable(t *rawTable) {
	b.ask(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, t.family, nftString(unix.NFTA_TABLE_NAME, t.name), nftNumber(unix.NFTA_TABLE_FLAGS, t.flags))
}

func (b *rawBatch) fillTable(t *rawTable) {
	for _, c := range t.chains {
		b.ask(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, t.family,
			nftString(unix.NFTA_CHAIN_TABLE, t.name), nftString(unix.NFTA_CHAIN_NAME, c.name),
			nftNest(unix.NFTA_CHAIN_HOOK, nftNumber(unix.NFTA_HOOK_HOOKNUM, c.hook), nftNumber(unix.NFTA_HOOK_PRIORITY, uint32(c.priority))),
			nftNumber(unix.NFTA_CHAIN_POLICY, 1 /* NF_ACCEPT */), nftString(unix.NFTA_CHAIN_TYPE, c.kind))
		for _, rule := range c.rules {
			var exprs [][]byte
			for _, e := range rule {
				elem := [][]byte{nftString(unix.NFTA_EXPR_NAME, e.name)}
				if e.name != "notrack" { // notrack has no attributes, and refuses an empty list of them
					elem = append(elem, nftNest(unix.NFTA_EXPR_DATA, e.attrs))
				}
				exprs = append(exprs, nftNest(unix.NFTA_LIST_ELEM, elem...))
			}
			b.ask(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, t.family,
				nftString(unix.NFTA_RULE_TABLE, t.name), nftString(unix.NFTA_RULE_CHAIN, c.name),
				nftNest(unix.NFTA_RULE_EXPRESSIONS, exprs...))
		}
	}
}

// rawSocket is a netlink socket in a pod's netns.
type rawSocket struct{ *nl.NetlinkSocket }

func openNft(ns netns.NsHandle) (rawSocket, error) {
	s, err := openNetlink(ns, unix.NETLINK_NETFILTER)
	if err != nil {
		return rawSocket{}, fmt.Errorf("opening nftables in the pod's netns: %w", err)
	}
	return rawSocket{s}, nil
}

// run runs a transaction. By the time the kernel has taken it, it has answered all of
// it (net/netfilter/nfnetlink.c, nfnetlink_rcv_batch).
func (s rawSocket) run(fill func(*rawBatch)) error {
	b := &rawBatch{}
	b.message(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	fill(b)
	b.message(unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	if err := unix.Sendto(s.GetFd(), b.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 16<<10)
	for answers := 0; ; {
		n, err := receive(s.NetlinkSocket, buf)
		switch {
		case errors.Is(err, unix.EAGAIN) && answers > 0:
			return nil
		case err != nil:
			return fmt.Errorf("waiting for nftables: %w", err)
		}
		for raw := buf[:n]; len(raw) >= unix.SizeofNlMsghdr+4; answers++ {
			size := min(int(binary.NativeEndian.Uint32(raw)+3)&^3, len(raw))
			if kind := binary.NativeEndian.Uint16(raw[4:]); kind == unix.NLMSG_ERROR {
				if errno := -int32(binary.NativeEndian.Uint32(raw[unix.SizeofNlMsghdr:])); errno != 0 {
					s.drain(buf)
					return unix.Errno(errno)
				}
			}
			raw = raw[max(size, unix.SizeofNlMsghdr):]
		}
	}
}

// has reports whether the table exists.
func (s rawSocket) has(t *rawTable) (bool, error) {
	b := &rawBatch{}
	b.message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETTABLE, 0, t.family, 0, nftString(unix.NFTA_TABLE_NAME, t.name))
	if err := unix.Sendto(s.GetFd(), b.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return false, err
	}
	buf := make([]byte, 1<<10)
	n, err := receive(s.NetlinkSocket, buf)
	defer s.drain(buf)
	if err == nil && n < unix.SizeofNlMsghdr+4 {
		err = unix.EBADMSG
	}
	if err != nil {
		return false, fmt.Errorf("asking for an nftables table: %w", err)
	}
	if binary.NativeEndian.Uint16(buf[4:]) != unix.NLMSG_ERROR {
		return true, nil
	}
	errno := unix.Errno(-int32(binary.NativeEndian.Uint32(buf[unix.SizeofNlMsghdr:])))
	if errno == unix.ENOENT {
		return false, nil
	}
	return false, errno
}

func (s rawSocket) drain(buf []byte) {
	for {
		if _, err := receive(s.NetlinkSocket, buf); err != nil {
			return
		}
	}
}

// lacksNft reports whether err means that the kernel lacks a part of nftables: a
// subsystem, a chain type or an expression, or that it is too old for a flag.
func lacksNft(err error) bool {
	for _, errno := range []error{unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.ENOENT, unix.EAFNOSUPPORT, unix.EINVAL} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// canOwnTables reports whether the kernel has tables that end with their socket.
var canOwnTables = onceKnown(probeOwnedTables)

// onceKnown returns a function that calls probe until it has had an answer.
func onceKnown(probe func() (bool, error)) func() (bool, error) {
	var mu sync.Mutex
	var known, answer bool
	return func() (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		if known {
			return answer, nil
		}
		yes, err := probe()
		known, answer = err == nil, yes
		return answer, err
	}
}

// probeOwnedTables makes such a table, in a netns that is made for it: the tables in a
// pod's netns say nothing about the kernel.
func probeOwnedTables() (bool, error) {
	errc := make(chan error)
	go onSpareThread(func() {
		errc <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("making a netns: %w", err)
			}
			s, err := openNft(netns.None())
			if err != nil {
				return err
			}
			defer s.Close()
			t := &rawTable{family: unix.NFPROTO_IPV4, name: dnsTable, flags: nftOwned}
			return s.run(func(b *rawBatch) { b.makeTable(t) })
		}()
	})
	switch err := <-errc; {
	case err == nil:
		return true, nil
	case lacksNft(err):
		return false, nil
	default:
		return false, fmt.Errorf("testing nftables: %w", err)
	}
}
