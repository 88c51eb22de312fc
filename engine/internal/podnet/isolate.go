// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// isolateHostEnd separates the host's IP stack and the pod at the host end: tc filters
// drop every frame in both directions.
//
// Our packet socket is not affected. Inbound, packet sockets get a frame before tc does
// (net/core/dev.c, __netif_receive_skb_core). Outbound, ours bypasses tc
// (PACKET_QDISC_BYPASS). A pod that forges the frame's destination reaches nothing on
// the host. A host daemon that sends on any new link (DHCP, LLDP, mDNS) does not reach
// the pod.
//
// The filters are part of the link and go with it. They are not firewall rules:
// flushing a ruleset does not remove them.
//
// built reports whether anything was missing.
func isolateHostEnd(ifindex int) (built bool, err error) {
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: ifindex,
		Handle:    netlink.MakeHandle(0xffff, 0),
		Parent:    netlink.HANDLE_CLSACT,
	}}
	err = netlink.QdiscAdd(qdisc)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return false, isolationError("adding the clsact qdisc", "sch_ingress", err)
	}
	built = err == nil
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		err := addDropFilter(ifindex, parent)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return built, isolationError("adding the drop filter", "cls_bpf", err)
		}
		built = built || err == nil
	}
	return built, nil
}

func isolationError(doing, module string, err error) error {
	if isNotFound(err) {
		return err
	}
	return fmt.Errorf("%s (kernel module %s): %w", doing, module, err)
}

// addDropFilter adds a filter of one classic BPF instruction, "return
// TC_ACT_SHOT", in direct-action mode. Classic, because it needs neither the
// bpf system call nor its capability.
func addDropFilter(ifindex int, parent uint32) error {
	const (
		handle   = 1
		priority = 1
		shot     = 2 // TC_ACT_SHOT, linux/pkt_cls.h
	)
	req := nl.NewNetlinkRequest(unix.RTM_NEWTFILTER, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(&nl.TcMsg{
		Family:  nl.FAMILY_ALL,
		Ifindex: int32(ifindex),
		Handle:  handle,
		Parent:  parent,
		Info:    netlink.MakeHandle(priority, nl.Swap16(unix.ETH_P_ALL)),
	})
	req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("bpf")))
	options := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	options.AddRtAttr(nl.TCA_BPF_OPS_LEN, nl.Uint16Attr(1))
	options.AddRtAttr(nl.TCA_BPF_OPS, sockFilter(unix.BPF_RET|unix.BPF_K, shot))
	options.AddRtAttr(nl.TCA_BPF_FLAGS, nl.Uint32Attr(nl.TCA_BPF_FLAG_ACT_DIRECT))
	req.AddData(options)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// sockFilter encodes one struct sock_filter (linux/filter.h).
func sockFilter(code uint16, k uint32) []byte {
	b := binary.NativeEndian.AppendUint16(nil, code)
	b = append(b, 0, 0) // jt, jf
	return binary.NativeEndian.AppendUint32(b, k)
}
