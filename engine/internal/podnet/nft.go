// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// forwardMark marks the packets of peers that were let through. Chains that come later
// need it: before Linux 5.7 they do not know the interface that a packet came in by. A
// packet loses its mark when it leaves the pod's netns.
const forwardMark = 0x74730116

// nftTable is a table of ours, one for each family, since one for both cannot do NAT
// before Linux 5.2. mu guards what was read of it.
type nftTable struct {
	name   string
	chains []string

	mu    sync.Mutex
	marks map[string][]string // identify the rules in place, by family and chain; nil if none are known
}

// nftChain is one of its chains.
type nftChain struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority *nftables.ChainPriority
	rules    [][]expr.Any
}

// families returns the families that a pod can forward.
func families() []bool {
	if kernelHasIPv6() {
		return []bool{false, true}
	}
	return []bool{false}
}

// install replaces the table, that of each family in one transaction.
func (t *nftTable) install(ns Namespace, chains func(v6 bool) []nftChain) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.marks = nil
	fd, err := ns.open()
	if err != nil {
		return err
	}
	defer fd.Close()
	comment := userdata.AppendString(nil, userdata.TypeComment, fmt.Sprintf("tailscale-nri %016x", rand.Uint64()))
	for _, v6 := range families() {
		conn, err := nftables.New(nftables.WithNetNSFd(int(fd)), nftables.WithSockOptions(roomForRules))
		if err != nil {
			return fmt.Errorf("opening nftables: %w", err)
		}
		table := t.of(v6)
		conn.AddTable(table) // so that the next line has one to delete
		conn.DelTable(table)
		conn.AddTable(table)
		for _, c := range chains(v6) {
			chain := conn.AddChain(&nftables.Chain{Name: c.name, Table: table, Type: c.kind, Hooknum: c.hook, Priority: c.priority})
			for _, exprs := range c.rules {
				conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs, UserData: comment})
			}
		}
		if err := conn.Flush(); err != nil {
			return fmt.Errorf("setting up nftables, which takes nf_tables, nft_ct, nft_chain_nat and nft_masq in the kernel: %w", err)
		}
	}
	t.marks, err = t.read(int(fd))
	return err
}

// roomForRules gives the socket room for a transaction of mostPassed rules, and for the
// kernel's answer to each.
func roomForRules(conn *netlink.Conn) error {
	const size = 2 << 20
	return errors.Join(conn.SetReadBuffer(size), conn.SetWriteBuffer(size))
}

// of returns the family's table.
func (t *nftTable) of(v6 bool) *nftables.Table {
	family := nftables.TableFamilyIPv4
	if v6 {
		family = nftables.TableFamilyIPv6
	}
	return &nftables.Table{Name: t.name, Family: family}
}

// chains returns the chains of a pod that forwards.
func (f *forward) chains(uplinks []string) func(v6 bool) []nftChain {
	return func(v6 bool) []nftChain {
		return []nftChain{
			{"forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, f.filter(v6, uplinks)},
			{"source", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, [][]expr.Any{append(marked(), &expr.Masq{})}},
		}
	}
}

// filter returns the rules that say what is forwarded.
//
// Answers go by the direction of their connection, not by its state. Packets that come
// by ts0 in a connection's own direction are checked each time, so that the connection
// ends when its destination is not advertised any more.
func (f *forward) filter(v6 bool, uplinks []string) (rules [][]expr.Any) {
	add := func(parts ...[]expr.Any) { rules = append(rules, slices.Concat(parts...)) }
	add(inBy(PodLink), outBy(PodLink), drop())
	add(inBy(PodLink), invalid(), drop()) // NAT skips such packets: they would keep the peer's address
	add(inBy(PodLink), direction(ctReply), accept())
	for _, p := range ofFamily(neverForwarded(), v6) {
		add(inBy(PodLink), toAny(p), drop())
	}
	for _, p := range ofFamily(f.To, v6) {
		add(inBy(PodLink), toAny(p), mark(), accept())
	}
	if f.Everything {
		for _, p := range ofFamily(f.Never, v6) {
			add(inBy(PodLink), toAny(p), drop())
		}
		add(inBy(PodLink), mark(), accept())
	}
	add(inBy(PodLink), drop())
	add(outBy(PodLink), direction(ctReply), accept())
	add(outBy(PodLink), drop())
	for _, name := range uplinks {
		add(inBy(name), outBy(name), drop())
	}
	return rules
}

func inBy(name string) []expr.Any  { return named(expr.MetaKeyIIFNAME, name) }
func outBy(name string) []expr.Any { return named(expr.MetaKeyOIFNAME, name) }

func named(key expr.MetaKey, name string) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: padded}}
}

// toAny matches the destinations in p.
func toAny(p netip.Prefix) []expr.Any {
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

// Directions of a connection (IP_CT_DIR_ORIGINAL, IP_CT_DIR_REPLY).
const (
	ctOriginal = 0
	ctReply    = 1
)

// direction matches packets that go in that direction of their connection.
func direction(d byte) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{d}},
	}
}

// invalid matches packets that belong to no connection and begin none.
func invalid() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitINVALID), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
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

// read returns, by family and chain, what identifies each rule. A rule that was
// replaced has another handle. A rule of a table that was created again, whose handles
// begin again at 1, has another comment.
func (t *nftTable) read(ns int) (map[string][]string, error) {
	conn, err := nftables.New(nftables.WithNetNSFd(ns), nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("opening nftables: %w", err)
	}
	defer func() { _ = conn.CloseLasting() }()
	marks := map[string][]string{}
	for _, v6 := range families() {
		table, err := conn.ListTableOfFamily(t.name, t.of(v6).Family)
		if err != nil {
			return nil, err
		}
		if table.Flags != 0 {
			return nil, errDormant
		}
		for _, chain := range t.chains {
			rules, err := conn.GetRules(table, &nftables.Chain{Name: chain})
			if err != nil {
				return nil, err
			}
			key := fmt.Sprint(table.Family, chain)
			for _, r := range rules {
				marks[key] = append(marks[key], fmt.Sprintf("%d %x", r.Handle, r.UserData))
			}
		}
	}
	return marks, nil
}

// installed reports whether install has been called with success.
func (t *nftTable) installed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.marks != nil
}

// intact reports whether the table is as install left it.
func (t *nftTable) intact(ns Namespace) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.marks == nil {
		return false
	}
	fd, err := ns.open()
	if err != nil {
		return true // other checks find that out
	}
	defer fd.Close()
	now, err := t.read(int(fd))
	return err == nil && maps.EqualFunc(now, t.marks, slices.Equal[[]string])
}
