#!/usr/bin/env bash
# routes-lost-unannounced: what a listener hears of the routes that go with an interface that is set down.
#
# Linux 6.18, iproute2 6.1.0 (Debian 12).
# Guess: RTM_DELROUTE for each route that goes, of either family.
# Seen:  one for each IPv6 route, none for an IPv4 route, though both are gone at once; the IPv4 address stays, the IPv6
#   address goes. A route that "ip route flush" deletes is announced in both families. A program that keeps IPv4 routes on
#   an interface has to take the RTM_NEWLINK that sets it down for the loss of all of them.
# Exits 1 if that has changed. Needs root and the Debian packages iproute2 and util-linux. It acts in a netns of its own.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export dir

cat >"$dir/inner" <<'INNER'
ip link add d0 type veth peer name d1
ip link set d0 up && ip link set d1 up
ip addr add 192.0.2.1/32 dev d0
ip addr add 2001:db8::1/128 dev d0 nodad

# until_heard FILE ADDRESS: makes and deletes a route until a listener has heard of it; an equal one is not announced.
until_heard() {
	until grep -q "$2" "$1"; do
		ip route add "$2" dev lo
		ip route del "$2" dev lo
	done
}

# heard NAME COMMAND…: what a listener hears of routes while the command runs.
heard() {
	local name=$dir/$1
	shift
	: >"$name"
	ip monitor route >>"$name" &
	local pid=$!
	until_heard "$name" 203.0.113.1
	"$@"
	until_heard "$name" 203.0.113.2
	kill $pid
}
ip link set lo up
for how in down flush; do
	ip link set d0 up
	ip route replace 198.51.100.0/24 dev d0
	ip -6 route replace 2001:db8:1::/48 dev d0
	if [ $how = down ]; then
		heard down ip link set d0 down
		[ -z "$(ip -4 route show dev d0)$(ip -6 route show dev d0)" ] && echo "both routes are gone"
		ip -o addr show dev d0 | grep -o "192.0.2.1/32\|2001:db8::1/128" | sed "s/^/still there: /"
	else
		heard flush bash -c "ip -4 route flush dev d0; ip -6 route flush dev d0"
	fi
	for route in 198.51.100.0/24 2001:db8:1::/48; do
		echo "$how: $(grep -c "^Deleted $route " "$dir/$how" || true) messages for $route"
	done
done
INNER
unshare --net bash -euo pipefail "$dir/inner" | tee "$dir/seen"

diff - "$dir/seen" <<'END' || { echo "this has changed (kernel $(uname -r))"; exit 1; }
both routes are gone
still there: 192.0.2.1/32
down: 0 messages for 198.51.100.0/24
down: 1 messages for 2001:db8:1::/48
flush: 1 messages for 198.51.100.0/24
flush: 1 messages for 2001:db8:1::/48
END
