// SPDX-License-Identifier: BSD-3-Clause

package podspec

import (
	"fmt"
	"net/netip"
)

// ParseRange reads a prefix. One address is a prefix too.
func ParseRange(s string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" && !addr.Is4In6() {
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil || p.Addr().Is4In6():
		return p, fmt.Errorf("write prefixes such as 100.64.0.0/13 or fd00:1::/112, separated by commas")
	case p != p.Masked():
		return p, fmt.Errorf("it has bits set beyond its length, write %v", p.Masked())
	case p.Bits() == 0:
		return p, fmt.Errorf("it is every address, so that no peer could be reached: name the ranges of nodes, pods and services")
	}
	return p, nil
}
