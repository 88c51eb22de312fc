// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A frame crosses the packet socket with a struct virtio_net_hdr that says
// what is left to do: fill in a checksum, cut it into segments. What that
// header cannot express, the kernel must do itself before the frame leaves
// the pod, so it is switched off on ts0.

// crossingSegmentation are the segmentation features that a virtio_net_hdr
// expresses (net/core/netdev_features.h, net/ethtool/common.c).
var crossingSegmentation = map[string]bool{
	"tx-tcp-segmentation":  true,
	"tx-tcp6-segmentation": true,
	"tx-udp-segmentation":  true, // since Linux 6.2: see crosses
}

// crosses reports whether frames that make use of the feature can cross the
// packet socket.
//
// These are off: lists of packets, checksums that are not the Internet checksum, and
// every other segmentation. That is of tunnels, whose header would name the inner
// packet's type for the outer packet; with ECN, whose CWR flag belongs on the first
// segment only; and of SCTP.
func crosses(feature string) bool {
	switch {
	case feature == "tx-udp-segmentation":
		return kernelAtLeast(6, 2)
	case feature == "tx-checksum-sctp", feature == "tx-checksum-fcoe-crc",
		feature == "tx-gso-list", feature == "tx-gso-partial":
		return false
	case strings.HasPrefix(feature, "tx-") && strings.HasSuffix(feature, "-segmentation"):
		return crossingSegmentation[feature]
	}
	return true
}

// setOffloads switches off features of ts0 that cannot cross. fd is any socket in the
// pod's netns.
func setOffloads(fd int) error {
	names, err := kernelFeatures(fd)
	if err != nil {
		return err
	}
	return clearFeatures(fd, len(names), func(i int) bool { return names[i] != "" && !crosses(names[i]) })
}

const (
	ethSSFeatures  = 4  // ETH_SS_FEATURES, linux/ethtool.h
	ethGStringLen  = 32 // ETH_GSTRING_LEN
	featuresPerSet = 32 // bits in a block of struct ethtool_sfeatures
)

// kernelFeatures returns what featureNames returned once it has succeeded: features are
// the same for each device.
func kernelFeatures(fd int) ([]string, error) {
	if names := knownFeatures.Load(); names != nil {
		return *names, nil
	}
	names, err := featureNames(fd)
	if err == nil {
		knownFeatures.Store(&names)
	}
	return names, err
}

var knownFeatures atomic.Pointer[[]string]

// featureNames returns the names of the device features of this kernel; their
// index is their bit.
func featureNames(fd int) ([]string, error) {
	// struct ethtool_sset_info with room for one set's length.
	info := struct {
		cmd, reserved uint32
		mask          uint64
		n             uint32
		_             uint32
	}{cmd: unix.ETHTOOL_GSSET_INFO, mask: 1 << ethSSFeatures}
	if err := ethtool(fd, unsafe.Pointer(&info)); err != nil {
		return nil, fmt.Errorf("asking for the number of features: %w", err)
	}
	const header = 12 // cmd, string_set, len
	buf := make([]byte, header+int(info.n)*ethGStringLen)
	*(*uint32)(unsafe.Pointer(&buf[0])) = unix.ETHTOOL_GSTRINGS
	*(*uint32)(unsafe.Pointer(&buf[4])) = ethSSFeatures
	*(*uint32)(unsafe.Pointer(&buf[8])) = info.n
	if err := ethtool(fd, unsafe.Pointer(&buf[0])); err != nil {
		return nil, fmt.Errorf("asking for the names of features: %w", err)
	}
	names := make([]string, info.n)
	for i := range names {
		name := buf[header+i*ethGStringLen:][:ethGStringLen]
		names[i] = string(name[:max(0, bytes.IndexByte(name, 0))])
	}
	return names, nil
}

// clearFeatures switches off those of the n features for which off is true.
func clearFeatures(fd, n int, off func(int) bool) error {
	blocks := (n + featuresPerSet - 1) / featuresPerSet
	// struct ethtool_sfeatures: cmd, size, then {valid, requested} a block.
	req := make([]uint32, 2+2*blocks)
	req[0], req[1] = unix.ETHTOOL_SFEATURES, uint32(blocks)
	for i := range n {
		if off(i) {
			req[2+2*(i/featuresPerSet)] |= 1 << (i % featuresPerSet)
		}
	}
	if err := ethtool(fd, unsafe.Pointer(&req[0])); err != nil {
		return fmt.Errorf("switching features off: %w", err)
	}
	return nil
}

// ethtool makes an ethtool ioctl on ts0 of the netns that fd belongs to.
func ethtool(fd int, req unsafe.Pointer) error {
	ifr := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte // struct ifreq is 40 bytes on 64-bit machines
	}{data: req}
	copy(ifr.name[:], PodLink)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifr)))
	runtime.KeepAlive(req)
	switch {
	case errno == 0:
		return nil
	case errors.Is(errno, unix.ENODEV):
		return fmt.Errorf("%w: %s: %w", ErrGone, PodLink, errno)
	}
	return errno
}

// kernelAtLeast reports whether the running kernel has the given release or a later
// one.
func kernelAtLeast(major, minor int) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var ma, mi int
	if n, _ := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &ma, &mi); n != 2 {
		return false
	}
	return ma > major || ma == major && mi >= minor
}
