#!/usr/bin/env bash
# ct-direction-of-invalid: which rule with "ct direction" takes a packet that connection tracking calls invalid.
#
# Linux 6.18; nftables of Debian 12 and later.
# Guess: a packet that belongs to no connection is not a reply, so "ct direction != reply drop" takes it.
# Seen:  neither that rule nor one for "original" or "reply" matches: with no connection to ask, the expression ends its
#   rule, negated or not (net/netfilter/nft_ct.c, nft_ct_get_eval). A filter that lets replies pass in its first rule and
#   drops "ct direction original" in its second lets invalid packets pass both. Only "ct state invalid" matches them.
# Exits 1 if that has changed. Needs root, nftables, iproute2 and perl-base. It acts in a netns of its own.
set -euo pipefail
[ "${1:-}" = inside ] || exec unshare -n "$0" inside

ip link set lo up
counted() { nft -a list chain ip t out | grep "$1" | sed 's/.*packets \([0-9]*\).*/\1/'; }

# A connection from before there was any tracking, of which packets in the middle are not taken for a beginning.
# shellcheck disable=SC2016 # the variables are perl's
coproc talk { perl -MIO::Socket::INET -e '
	$| = 1;
	my $server = IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1", LocalPort => 7777) or die;
	my $client = IO::Socket::INET->new(PeerAddr => "127.0.0.1", PeerPort => 7777) or die;
	my $peer = $server->accept;
	print "connected\n"; <STDIN>; syswrite $client, "x"; print "sent\n"; <STDIN>;'; }
read -r _ <&"${talk[0]}"
nft -f - <<'R'
table ip t {
	chain out {
		type filter hook output priority filter
		tcp dport 7777 counter comment "all"
		tcp dport 7777 ct state invalid counter comment "invalid"
		tcp dport 7777 ct direction original counter comment "original"
		tcp dport 7777 ct direction reply counter comment "reply"
		tcp dport 7777 ct direction != reply counter comment "not reply"
		tcp dport 7777 ct direction != original counter comment "not original"
	}
}
R
echo 0 >/proc/sys/net/netfilter/nf_conntrack_tcp_loose
echo >&"${talk[1]}"
read -r _ <&"${talk[0]}"
sleep 0.2
nft list chain ip t out | grep -o 'tcp dport.*'
if [ "$(counted '"invalid"')" -gt 0 ] && [ "$(counted '"invalid"')" = "$(counted '"all"')" ] &&
	[ "$(counted '"original"') $(counted '"reply"') $(counted '"not reply"') $(counted '"not original"')" = "0 0 0 0" ]; then
	echo "as seen: packets are invalid, and no rule with a ct direction matches them, negated or not"
else
	echo "that has changed"
	exit 1
fi
