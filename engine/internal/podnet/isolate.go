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

// isolateHostEnd separates the host's IP stack and the pod at the host end. A tc filter
// drops every frame from the pod, and a qdisc every frame to it.
//
// Our packet socket is not affected. Inbound, packet sockets get a frame before tc does
// (net/core/dev.c, __netif_receive_skb_core). Outbound, ours bypasses the qdisc
// (PACKET_QDISC_BYPASS). A pod that forges the frame's destination reaches nothing on
// the host. A host daemon that sends on any new link (DHCP, LLDP, mDNS) does not reach
// the pod.
//
// Both are part of the link and go with it. They are not firewall rules: flushing a
// ruleset does not remove them.
//
// A second filter would do as well as the qdisc. But the first filter of a direction
// waits for a grace period of RCU, unless one has passed since its qdisc was added, and all
// other interfaces wait with it (net/sched/sch_generic.c, mini_qdisc_pair_swap).
//
// filtered says that the filter is to be there as well as the qdiscs; built reports
// whether anything was missing.
func isolateHostEnd(s rtnl, ifindex int, filtered bool) (built bool, err error) {
	requests := []*nl.NetlinkRequest{
		// Without the flag the kernel answers to the group of listeners alone.
		qdisc(unix.RTM_GETQDISC, unix.NLM_F_ECHO, ifindex, 0, netlink.HANDLE_ROOT),
		qdisc(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, ifindex, 0, netlink.HANDLE_ROOT, blackhole),
		qdisc(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ifindex, netlink.MakeHandle(0xffff, 0), netlink.HANDLE_CLSACT, "clsact"),
	}
	if filtered {
		requests = append(requests, dropFilter(ifindex, netlink.HANDLE_MIN_INGRESS))
	}
	answers, err := s.do(requests...)
	if err != nil {
		return false, err
	}
	built = answers[0].qdiscKind() != blackhole
	if err := answers[1].err; err != nil {
		return built, fmt.Errorf("adding the blackhole qdisc: %w", err)
	}
	added := []struct{ doing, module string }{{"adding the clsact qdisc", "sch_ingress"}, {"adding the drop filter", "cls_bpf"}}
	for i, a := range answers[2:] {
		switch {
		case a.err == nil:
			built = true
		case !errors.Is(a.err, unix.EEXIST):
			return built, isolationError(added[i].doing, added[i].module, a.err)
		}
	}
	return built, nil
}

// AwaitGracePeriod waits for a grace period of RCU, some 10 ms, and holds nobody up with
// that. [Ensure] after it need not wait for one, from Linux 5.16 on; before, it does all
// the same. It returns at once where there is one processor, and where the kernel refuses
// it (membarrier(2): built without, or with processors that have no timer tick).
func AwaitGracePeriod() {
	const global = 1 // MEMBARRIER_CMD_GLOBAL, linux/membarrier.h
	_, _, _ = unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0)
}

const blackhole = "blackhole"

func qdisc(message, flags, ifindex int, handle, parent uint32, kind ...string) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(message, flags)
	req.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(ifindex), Handle: handle, Parent: parent})
	for _, k := range kind {
		req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated(k)))
	}
	return req
}

// qdiscKind returns the kind of the qdisc that an answer describes, "" if there is none.
func (a answer) qdiscKind() string {
	if a.err != nil || len(a.msg) < nl.SizeofTcMsg {
		return ""
	}
	return unix.ByteSliceToString(attr(a.msg[nl.SizeofTcMsg:], nl.TCA_KIND))
}

func isolationError(doing, module string, err error) error {
	if isNotFound(err) {
		return err
	}
	return fmt.Errorf("%s (kernel module %s): %w", doing, module, err)
}

// dropFilter adds a filter of one classic BPF instruction, "return TC_ACT_SHOT", in
// direct-action mode. Classic, because it needs neither the bpf system call nor its
// capability.
func dropFilter(ifindex int, parent uint32) *nl.NetlinkRequest {
	const (
		handle   = 1
		priority = 1
		shot     = 2 // TC_ACT_SHOT, linux/pkt_cls.h
	)
	req := nl.NewNetlinkRequest(unix.RTM_NEWTFILTER, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
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
	return req
}

// sockFilter encodes one struct sock_filter (linux/filter.h).
func sockFilter(code uint16, k uint32) []byte {
	b := binary.NativeEndian.AppendUint16(nil, code)
	b = append(b, 0, 0) // jt, jf
	return binary.NativeEndian.AppendUint32(b, k)
}
