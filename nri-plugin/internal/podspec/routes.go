// SPDX-License-Identifier: BSD-3-Clause

package podspec

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"tailscale.com/util/dnsname"

	"tailscale-nri/engine"
)

// maxAdvertised bounds the routes of one pod: each is a rule of its packet filter.
const maxAdvertised = 64

// setExitNode reads the name or the address of a peer.
func setExitNode(f *engine.Features, value string) error {
	errBad := errors.New("write the name of a device of the tailnet, whole or its first label, or its Tailscale address")
	if addr, err := netip.ParseAddr(value); err == nil {
		if addr.Zone() != "" || addr.Is4In6() {
			return errBad
		}
		f.ExitNode = addr.String()
		return nil
	}
	name := strings.TrimSuffix(value, ".")
	if len(name) > 253 {
		return errBad
	}
	for label := range strings.SplitSeq(name, ".") {
		if dnsname.ValidLabel(label) != nil {
			return errBad
		}
	}
	f.ExitNode = strings.ToLower(name)
	return nil
}

// setAdvertiseRoutes reads prefixes.
func setAdvertiseRoutes(f *engine.Features, value string) error {
	for field := range strings.SplitSeq(value, ",") {
		p, err := advertisable(strings.TrimSpace(field))
		if err != nil {
			return err
		}
		if !slices.Contains(f.AdvertiseRoutes, p) {
			f.AdvertiseRoutes = append(f.AdvertiseRoutes, p)
		}
	}
	if n := len(f.AdvertiseRoutes); n > maxAdvertised {
		return fmt.Errorf("these are %d prefixes, write %d at most: wider ones, or those of several pods", n, maxAdvertised)
	}
	return nil
}

func advertisable(field string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(field)
	switch {
	case err != nil || p.Addr().Is4In6():
		return p, fmt.Errorf("%q is not a prefix: write such as 10.43.0.0/16 or fd00:1::/112, separated by commas", field)
	case p.Bits() == 0:
		return p, fmt.Errorf("%s is everything: write %s: \"true\" instead", field, annotationAdvertiseExitNode)
	case p != p.Masked():
		return p, fmt.Errorf("%s has bits set beyond its length: write %v", field, p.Masked())
	}
	if never, is := engine.NeverForwarded(p); is {
		return p, fmt.Errorf("%s has a part of %v, the tailnet's own or each host's: leave that out", field, never)
	}
	return p, nil
}
