// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const (
	// nftTable is the name of our tables in a pod that forwards, one for each family:
	// a table for both cannot do NAT before Linux 5.2.
	nftTable = "tailscale-nri"
	// forwardMark marks the packets that were let through, for the chain that
	// masquerades, which is told no interface before Linux 5.7. A packet loses its
	// mark when it leaves the pod's netns.
	forwardMark = 0x74730116
)

// chains are those of a table of ours.
type chains struct {
	table           *nftables.Table
	forward, source *nftables.Chain
}

func chainsOf(v6 bool) chains {
	c := chains{table: &nftables.Table{Name: nftTable, Family: nftables.TableFamilyIPv4}}
	if v6 {
		c.table.Family = nftables.TableFamilyIPv6
	}
	c.forward = &nftables.Chain{
		Name: "forward", Table: c.table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	}
	c.source = &nftables.Chain{
		Name: "source", Table: c.table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	}
	return c
}

// families are those that a pod can forward.
func families() []bool {
	if kernelHasIPv6() {
		return []bool{false, true}
	}
	return []bool{false}
}

// installFilter replaces our tables, each in one transaction. It returns their
// rules' handles.
func (f *forward) installFilter(ns Namespace) (map[string][]uint64, error) {
	fd, err := ns.open()
	if err != nil {
		return nil, err
	}
	defer fd.Close()
	var names []string
	if err := ns.do(func() (err error) { names, err = uplinks(); return err }); err != nil {
		return nil, err
	}
	for _, v6 := range families() {
		conn, err := nftables.New(nftables.WithNetNSFd(int(fd)))
		if err != nil {
			return nil, fmt.Errorf("opening nftables: %w", err)
		}
		c := chainsOf(v6)
		conn.AddTable(c.table) // or there is none to delete
		conn.DelTable(c.table)
		conn.AddTable(c.table)
		conn.AddChain(c.forward)
		conn.AddChain(c.source)
		for _, exprs := range f.filter(v6, names) {
			conn.AddRule(&nftables.Rule{Table: c.table, Chain: c.forward, Exprs: exprs})
		}
		conn.AddRule(&nftables.Rule{Table: c.table, Chain: c.source, Exprs: append(marked(), &expr.Masq{})})
		if err := conn.Flush(); err != nil {
			return nil, fmt.Errorf("setting up nftables, which takes nft_chain_nat, nft_masq and nft_ct in the kernel: %w", err)
		}
	}
	return readHandles(int(fd))
}

// filter returns the rules that say what is forwarded.
//
// Answers go by the direction of their connection, not by its state: what comes by
// ts0 in a connection's own direction is looked at each time, so that it ends when
// it is no longer advertised.
func (f *forward) filter(v6 bool, uplinks []string) (rules [][]expr.Any) {
	add := func(parts ...[]expr.Any) { rules = append(rules, slices.Concat(parts...)) }
	add(in(PodLink), out(PodLink), drop())
	add(in(PodLink), reply(), accept())
	for _, p := range only(neverForwarded(), v6) {
		add(in(PodLink), to(p), drop())
	}
	for _, p := range only(f.To, v6) {
		add(in(PodLink), to(p), mark(), accept())
	}
	if f.Everything {
		for _, p := range only(f.Never, v6) {
			add(in(PodLink), to(p), drop())
		}
		add(in(PodLink), mark(), accept())
	}
	add(in(PodLink), drop())
	add(out(PodLink), reply(), accept())
	add(out(PodLink), drop())
	for _, name := range uplinks {
		add(in(name), out(name), drop())
	}
	return rules
}

func in(name string) []expr.Any  { return named(expr.MetaKeyIIFNAME, name) }
func out(name string) []expr.Any { return named(expr.MetaKeyOIFNAME, name) }

func named(key expr.MetaKey, name string) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: padded}}
}

// to matches destinations in p.
func to(p netip.Prefix) []expr.Any {
	addr := p.Addr().AsSlice()
	offset := uint32(16) // of the destination in the IPv4 header
	if p.Addr().Is6() {
		offset = 24
	}
	size := uint32(len(addr))
	mask := ipNet(p).Mask
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: addr},
	}
}

// reply matches what goes against its connection's own direction.
func reply() []expr.Any {
	const replyDirection = 1 // IP_CT_DIR_REPLY
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{replyDirection}},
	}
}

func mark() []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(forwardMark)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}
}

func marked() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(forwardMark)},
	}
}

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() []expr.Any   { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }

var errDormant = errors.New("the table is switched off")

// readHandles returns the handles of our rules, by family and chain. A rule that
// was replaced has another one.
func readHandles(ns int) (map[string][]uint64, error) {
	conn, err := nftables.New(nftables.WithNetNSFd(ns), nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("opening nftables: %w", err)
	}
	defer conn.CloseLasting()
	handles := map[string][]uint64{}
	for _, v6 := range families() {
		c := chainsOf(v6)
		table, err := conn.ListTableOfFamily(nftTable, c.table.Family)
		if err != nil {
			return nil, err
		}
		if table.Flags != 0 {
			return nil, errDormant
		}
		for _, chain := range []*nftables.Chain{c.forward, c.source} {
			rules, err := conn.GetRules(c.table, chain)
			if err != nil {
				return nil, err
			}
			key := fmt.Sprint(c.table.Family, chain.Name)
			for _, r := range rules {
				handles[key] = append(handles[key], r.Handle)
			}
		}
	}
	return handles, nil
}

func (f *forward) filterIntact(ns Namespace) bool {
	fd, err := ns.open()
	if err != nil {
		return true // which others find out
	}
	defer fd.Close()
	now, err := readHandles(int(fd))
	if err != nil || len(now) != len(f.handles) {
		return false
	}
	for key, handles := range f.handles {
		if !slices.Equal(now[key], handles) {
			return false
		}
	}
	return true
}
