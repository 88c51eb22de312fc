// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"path"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The functions of this file act on the netns of the calling thread.

const (
	inetConf          = 1 // IFLA_INET_CONF
	devconfForwarding = 1 // IPV4_DEVCONF_FORWARDING (linux/ip.h)
)

// forward4 switches forwarding on for each interface except lo, by netlink. The kernel
// goes by the setting of the interface that a packet comes in by (net/ipv4/route.c,
// ip_route_input_slow), and the pod's net.ipv4.ip_forward stays unchanged.
//
// A strict reverse path filter lets packets from ts0 pass: it looks up the way back of a
// packet that came by eth0 (net/ipv4/fib_frontend.c, __fib_validate_source), which a rule
// of ours leads to the peer.
func forward4() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("listing interfaces: %w", err)
	}
	for _, l := range links {
		if l.Attrs().Name == "lo" {
			continue
		}
		// EAFNOSUPPORT: the interface has no IPv4.
		if err := setForwarding(l.Attrs().Index); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
			return fmt.Errorf("forwarding by %s: %w", l.Attrs().Name, err)
		}
	}
	return nil
}

// setForwarding has an interface forward IPv4 (net/ipv4/devinet.c, inet_set_link_af).
func setForwarding(index int) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC|unix.NLA_F_NESTED, nil)
	conf := spec.AddRtAttr(unix.AF_INET|unix.NLA_F_NESTED, nil).AddRtAttr(inetConf|unix.NLA_F_NESTED, nil)
	conf.AddRtAttr(devconfForwarding, nl.Uint32Attr(1))
	req.AddData(spec)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// forward6 switches IPv6 forwarding on, which is one switch for all interfaces. Where
// accept_ra is 1, a host that forwards takes no more router advertisements, and loses
// the default route that it has from one. So accept_ra becomes 2 (net/ipv6/addrconf.c,
// addrconf_fixup_forwarding).
func forward6() error {
	if !kernelHasIPv6() || forwards6() {
		return nil
	}
	proc, err := openSysctls()
	if err != nil {
		return err
	}
	defer unix.Close(proc)
	names, err := uplinks()
	if err != nil {
		return err
	}
	for _, name := range append(names, "default") {
		file := path.Join("net/ipv6/conf", name, "accept_ra")
		if got, err := readSysctl(proc, file); err == nil && got == "1" {
			if err := writeSysctl(proc, file, "2"); err != nil {
				return err
			}
		}
	}
	return writeSysctl(proc, "net/ipv6/conf/all/forwarding", "1")
}

// openSysctls opens a directory in which the sysctls of the thread's netns can be
// written. In a container /proc/sys is read-only, so the directory belongs to a procfs
// that is mounted nowhere.
func openSysctls() (int, error) {
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("opening a procfs (CAP_SYS_ADMIN, Linux 5.2): %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("making a procfs: %w", err)
	}
	root, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return -1, fmt.Errorf("making a procfs: %w", err)
	}
	defer unix.Close(root)
	dir, err := unix.Openat(root, "sys", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("opening the sysctls: %w", err)
	}
	return dir, nil
}

func readSysctl(dir int, file string) (string, error) {
	fd, err := unix.Openat(dir, file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	buf := make([]byte, 32)
	n, err := unix.Read(fd, buf)
	return string(bytes.TrimSpace(buf[:max(n, 0)])), err
}

func writeSysctl(dir int, file, value string) error {
	fd, err := unix.Openat(dir, file, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EACCES) {
		return fmt.Errorf("setting sysctl %s: %w: AppArmor forbids it, or the like; give the program the AppArmor profile Unconfined, or have the "+
			"pod's securityContext.sysctls set net.ipv6.conf.all.forwarding, which the kubelet must allow (--allowed-unsafe-sysctls)", file, err)
	}
	if err != nil {
		return fmt.Errorf("setting sysctl %s: %w", file, err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return fmt.Errorf("setting sysctl %s to %s: %w", file, value, err)
	}
	return nil
}

// Attributes of RTM_NEWNETCONF (linux/netconf.h).
const (
	netconfIfindex    = 1
	netconfForwarding = 2
	netconfAll        = -1
)

var errNotForwarding = errors.New("an interface does not forward")

// forwarding returns nil if the thread's netns forwards; with only4 it checks IPv4
// alone.
func forwarding(only4 bool) error {
	lo := int32(1) // the index of lo, in every netns
	found := false
	err := netconf(unix.AF_INET, func(index int32, on bool) error {
		if index <= 0 || index == lo {
			return nil
		}
		if found = true; !on {
			return errNotForwarding
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case !found || !only4 && kernelHasIPv6() && !forwards6():
		return errNotForwarding
	}
	return nil
}

func forwards6() (is bool) {
	err := netconf(unix.AF_INET6, func(index int32, on bool) error {
		is = is || index == netconfAll && on
		return nil
	})
	return err == nil && is
}

// netconf calls fn with each interface's setting of forwarding, and those for all
// and for new ones, whose indexes are negative.
func netconf(family byte, fn func(index int32, on bool) error) error {
	req := nl.NewNetlinkRequest(unix.RTM_GETNETCONF, unix.NLM_F_DUMP)
	req.AddRawData([]byte{family, 0, 0, 0})
	messages, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNETCONF)
	if err != nil {
		return fmt.Errorf("reading which interfaces forward: %w", err)
	}
	for _, m := range messages {
		const header = 4 // struct netconfmsg, padded
		index, on := attr(m[header:], netconfIfindex), attr(m[header:], netconfForwarding)
		if len(index) != 4 || len(on) != 4 {
			continue
		}
		if err := fn(int32(binary.NativeEndian.Uint32(index)), binary.NativeEndian.Uint32(on) != 0); err != nil {
			return err
		}
	}
	return nil
}
