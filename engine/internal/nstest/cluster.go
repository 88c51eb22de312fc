// SPDX-License-Identifier: BSD-3-Clause

package nstest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/net/dns/dnsmessage"
)

// Cluster is the rest of a cluster as a pod sees it by eth0: a netns with a DNS
// server at two addresses.
type Cluster struct {
	*Pod
	IP4, IP6 netip.Addr // of the server

	mu      sync.Mutex
	records map[string][]netip.Addr // by name, lower case, with the last dot
	asked   []Asked
	pods    int
}

// Asked is a query that the server has had.
type Asked struct {
	Name    string
	Network string // "udp" or "tcp"
	From    netip.Addr
}

// BigName has an answer that takes TCP.
const BigName = "big.svc.cluster.local."

// NewCluster makes a cluster with a DNS server that knows these names and [BigName].
func NewCluster(t testing.TB, records map[string][]netip.Addr) *Cluster {
	t.Helper()
	c := &Cluster{Pod: NewPod(t), IP4: netip.MustParseAddr("10.96.0.10"), IP6: netip.MustParseAddr("fd00:96::10"), records: records}
	lo, err := c.Netlink().LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range []netip.Addr{c.IP4, c.IP6} {
		if err := c.Netlink().AddrAdd(lo, address(netip.PrefixFrom(addr, addr.BitLen()))); err != nil {
			t.Fatal(err)
		}
	}
	c.ServeDNS(c.Pod, c.IP4, c.IP6)
	return c
}

func address(p netip.Prefix) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}, Flags: 0x02 /* IFA_F_NODAD */}
}

// ServeDNS answers in the pod, at port 53 of the addresses, from the cluster's names.
func (c *Cluster) ServeDNS(p *Pod, addrs ...netip.Addr) {
	c.t.Helper()
	for _, addr := range addrs {
		at := netip.AddrPortFrom(addr, 53)
		var u *net.UDPConn
		var l net.Listener
		p.Do(func() (err error) {
			if u, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)); err == nil {
				l, err = net.Listen("tcp", at.String())
			}
			return err
		})
		c.t.Cleanup(func() { u.Close(); l.Close() })
		go c.serveUDP(u)
		go c.serveTCP(l)
	}
}

// Connect gives the pod an eth0 in the cluster, with an address of each family and
// default routes, and returns the addresses.
func (c *Cluster) Connect(p *Pod) (ip4, ip6 netip.Addr) {
	c.t.Helper()
	c.mu.Lock()
	c.pods++
	i := c.pods
	c.mu.Unlock()
	host := fmt.Sprintf("pod%d", i)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	h, err := netlink.NewHandleAt(p.ns) // an open one would keep the netns alive
	if err != nil {
		c.t.Fatalf("opening netlink in the pod: %v", err)
	}
	defer h.Close()
	here := c.Netlink()
	err = h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: host, PeerNamespace: netlink.NsFd(int(netns.NsHandle(c.ns)))})
	if err != nil {
		c.t.Fatalf("making eth0: %v", err)
	}
	up := func(h *netlink.Handle, name string, prefixes ...string) netlink.Link {
		link, err := h.LinkByName(name)
		if err == nil {
			err = h.LinkSetUp(link)
		}
		for _, p := range prefixes {
			err = errors.Join(err, h.AddrAdd(link, address(netip.MustParsePrefix(p))))
		}
		if err != nil {
			c.t.Fatalf("setting up %s: %v", name, err)
		}
		return link
	}
	net4, net6 := fmt.Sprintf("10.70.%d", i), fmt.Sprintf("fd00:70:%x:", i)
	up(here, host, net4+".1/24", net6+":1/64")
	eth0 := up(h, "eth0", net4+".2/24", net6+":2/64")
	for _, gw := range []string{net4 + ".1", net6 + ":1"} {
		if err := h.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: net.ParseIP(gw)}); err != nil {
			c.t.Fatalf("adding a default route by %s: %v", gw, err)
		}
	}
	return netip.MustParseAddr(net4 + ".2"), netip.MustParseAddr(net6 + ":2")
}

// Set gives a name other addresses; none has it not exist.
func (c *Cluster) Set(name string, addrs ...netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.records[name] = addrs
}

// Asked returns the queries for the name.
func (c *Cluster) Asked(name string) []Asked {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(c.asked), func(a Asked) bool { return a.Name != name })
}

func (c *Cluster) serveUDP(u *net.UDPConn) {
	buf := make([]byte, 4096)
	for {
		n, from, err := u.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if a := c.answer(buf[:n], "udp", from.Addr()); a != nil {
			_, _ = u.WriteToUDPAddrPort(a, from)
		}
	}
}

func (c *Cluster) serveTCP(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			for {
				q, err := readMessage(conn)
				if err != nil {
					return
				}
				a := c.answer(q, "tcp", conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr())
				_, _ = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...))
			}
		}()
	}
}

func readMessage(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, msg)
	return msg, err
}

func (c *Cluster) answer(q []byte, network string, from netip.Addr) []byte {
	var m dnsmessage.Message
	if m.Unpack(q) != nil || len(m.Questions) != 1 {
		return nil
	}
	question := m.Questions[0]
	name := strings.ToLower(question.Name.String())
	c.mu.Lock()
	c.asked = append(c.asked, Asked{name, network, from.Unmap()})
	addrs, known := c.records[name]
	c.mu.Unlock()
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	header := dnsmessage.ResourceHeader{Name: question.Name, Class: question.Class, TTL: 5}
	switch {
	case name == BigName && network == "udp":
		m.Truncated = true
	case name == BigName:
		for range 40 {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.TXTResource{TXT: []string{strings.Repeat("x", 100)}}})
		}
	case !known || len(addrs) == 0:
		m.RCode = dnsmessage.RCodeNameError
	}
	for _, addr := range addrs {
		switch {
		case addr.Is4() && question.Type == dnsmessage.TypeA:
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AResource{A: addr.As4()}})
		case addr.Is6() && question.Type == dnsmessage.TypeAAAA:
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}})
		}
	}
	a, err := m.Pack()
	if err != nil {
		return nil
	}
	return a
}

// Ask asks a DNS server from within the pod, once, and waits for two seconds.
func (p *Pod) Ask(network string, server netip.Addr, name string, kind dnsmessage.Type) (dnsmessage.Message, error) {
	return p.AskAt(network, netip.AddrPortFrom(server, 53), name, kind)
}

// AskAt is Ask at another port.
func (p *Pod) AskAt(network string, server netip.AddrPort, name string, kind dnsmessage.Type) (m dnsmessage.Message, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var conn net.Conn
	p.Do(func() error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, server.String())
		return nil
	})
	if err != nil {
		return m, err
	}
	defer conn.Close()
	return AskOn(conn, name, kind)
}

// AskOn asks on a connection.
func AskOn(conn net.Conn, name string, kind dnsmessage.Type) (m dnsmessage.Message, err error) {
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	q := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: uint16(time.Now().UnixNano()), RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}},
	}
	raw, err := q.Pack()
	if err != nil {
		return m, err
	}
	stream := conn.RemoteAddr().Network() == "tcp"
	if stream {
		raw = append(binary.BigEndian.AppendUint16(nil, uint16(len(raw))), raw...)
	}
	if _, err := conn.Write(raw); err != nil {
		return m, err
	}
	buf := make([]byte, 64<<10)
	if stream {
		buf, err = readMessage(conn)
	} else {
		var n int
		n, err = conn.Read(buf)
		buf = buf[:n]
	}
	if err != nil {
		return m, err
	}
	if err := m.Unpack(buf); err != nil {
		return m, err
	}
	if m.ID != q.ID {
		return m, errors.New("an answer to another query")
	}
	return m, nil
}

// Addrs returns the addresses in an answer.
func Addrs(m dnsmessage.Message) (out []netip.Addr) {
	for _, a := range m.Answers {
		switch b := a.Body.(type) {
		case *dnsmessage.AResource:
			out = append(out, netip.AddrFrom4(b.A))
		case *dnsmessage.AAAAResource:
			out = append(out, netip.AddrFrom16(b.AAAA))
		}
	}
	return out
}
