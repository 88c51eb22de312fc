#!/usr/bin/env bash
# ipv6-unreachable-is-forgotten: whether an unreachable route, found while a packet has no source yet, holds it back.
#
# Linux 6.18.
# Guess: a packet that the rule for packets without a source leads to an unreachable default route is refused, in IPv6 as
#   in IPv4.
# Seen:  in IPv6 the packet leaves by eth0. A look-up without a source that ends in an error is forgotten. Any source is
#   chosen, and the look-up is made again with that source (net/ipv6/ip6_output.c, ip6_dst_lookup_tail), which other
#   rules match. "ip -6 route get" says unreachable all the same: it looks once.
# Exits 1 if that has changed. Needs root, iproute2 and bash. It acts in a netns of its own.
set -euo pipefail
[ "${1:-}" = inside ] || exec unshare -n "$0" inside

ip link set lo up
ip link add eth0 type veth peer name other
ip link set other up
ip link set eth0 up
for v in 4 6; do
	far=2001:db8:9::1 own=2001:db8::2/64 halves='::/1 8000::/1'
	[ $v = 6 ] || { far=198.51.100.1 own=192.0.2.2/24 halves='0.0.0.1/32 192.0.2.2/32'; }
	nodad=
	[ $v = 4 ] || nodad=nodad
	ip -$v addr add $own dev eth0 $nodad
	ip -$v route add default dev eth0
	ip -$v route add unreachable default table 77
	for half in $halves; do ip -$v rule add from "$half" pref 100 lookup main; done
	ip -$v rule add pref 101 lookup 77
	echo "IPv$v: ip route get: $(ip -$v route get $far 2>&1 | head -1)"
	if (exec 3<>/dev/udp/$far/9) 2>/dev/null; then said=connected; else said=refused; fi
	echo "IPv$v: connect: $said"
	seen="${seen:-} $said"
done
if [ "$seen" = " refused connected" ]; then
	echo "as seen: IPv4 is refused, IPv6 leaves by eth0"
else
	echo "that has changed"
	exit 1
fi
