// SPDX-License-Identifier: BSD-3-Clause

package control

import (
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"

	"tailscale.com/derp/derpserver"
	"tailscale.com/net/stun"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// derpRegion is in the range that Tailscale leaves to private regions (900 to
// 999).
const derpRegion = 900

// startRelay starts DERP and STUN and writes the DERP map that names them.
func (s *Server) startRelay() error {
	derpAddr, err := s.startDERP()
	if err != nil {
		return err
	}
	stunAddr, err := s.startSTUN()
	if err != nil {
		return err
	}
	node := &tailcfg.DERPNode{
		Name:             "900a",
		RegionID:         derpRegion,
		HostName:         s.cfg.Addr.String(),
		IPv4:             "none",
		IPv6:             "none",
		STUNPort:         int(stunAddr.Port()),
		DERPPort:         int(derpAddr.Port()),
		InsecureForTests: true, // the certificate is httptest's own
		STUNTestIP:       s.cfg.Addr.String(),
	}
	if s.cfg.Addr.Is4() {
		node.IPv4 = s.cfg.Addr.String()
	} else {
		node.IPv6 = s.cfg.Addr.String()
	}
	s.derpMap = &tailcfg.DERPMap{
		Regions: map[tailcfg.DERPRegionID]*tailcfg.DERPRegion{derpRegion: {
			RegionID:   derpRegion,
			RegionCode: "lab",
			RegionName: "Lab",
			Nodes:      []*tailcfg.DERPNode{node},
		}},
	}
	return nil
}

// startDERP serves DERP over TLS. HTTP/2 is off, since a DERP connection
// hijacks its HTTP/1.1 one.
func (s *Server) startDERP() (netip.AddrPort, error) {
	ln, addr, err := s.listen(0)
	if err != nil {
		return addr, err
	}
	derp := derpserver.New(key.NewNode(), s.debugf("derp"))
	mux := http.NewServeMux()
	mux.Handle("/derp", derpserver.Handler(derp))
	mux.HandleFunc("/derp/probe", derpserver.ProbeHandler)
	mux.HandleFunc("/derp/latency-check", derpserver.ProbeHandler)
	mux.HandleFunc("/generate_204", derpserver.ServeNoContent)

	srv := &httptest.Server{Listener: ln, Config: &http.Server{Handler: mux}}
	srv.Config.ErrorLog = discardLog
	srv.StartTLS()
	s.onClose(func() {
		derp.Close() // first: the HTTP server no longer knows a hijacked connection
		srv.CloseClientConnections()
		srv.Close()
	})
	return addr, nil
}

// startSTUN answers binding requests with the address they came from.
func (s *Server) startSTUN() (netip.AddrPort, error) {
	pc, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.cfg.Addr, 0)))
	if err != nil {
		return netip.AddrPort{}, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.serveSTUN(pc)
	}()
	s.onClose(func() { pc.Close(); <-done })
	return pc.LocalAddr().(*net.UDPAddr).AddrPort(), nil
}

// serveSTUN runs until pc is closed.
func (s *Server) serveSTUN(pc *net.UDPConn) {
	buf := make([]byte, 1500)
	for {
		n, src, err := pc.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error of an earlier answer
		}
		txID, err := stun.ParseBindingRequest(buf[:n])
		if err != nil {
			continue
		}
		src = netip.AddrPortFrom(src.Addr().Unmap(), src.Port())
		if _, err := pc.WriteToUDPAddrPort(stun.Response(txID, src), src); err != nil {
			s.log.Debug("answering STUN", "to", src, "err", err)
		}
	}
}
