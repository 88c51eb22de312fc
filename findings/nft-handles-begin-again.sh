#!/usr/bin/env bash
# nft-handles-begin-again: whether a rule's handle tells it from every rule that has been there before.
#
# Linux 6.18; nftables of Debian 12 and later.
# Guess: handles count up, as those of the ruleset's generations do, so one that is still there is still the same rule.
# Seen:  they are a table's own, and that of a table which is deleted and made again begins at 1. Who remembers handles
#   to see whether others have touched his rules takes a table of the same shape, with rules that accept everything, for
#   his own. The generation (nft monitor) does go on.
# Exits 1 if that has changed. Needs root, nftables and iproute2. It acts in a netns of its own.
set -euo pipefail
[ "${1:-}" = inside ] || exec unshare -n "$0" inside

make() {
	nft -f - <<-R
		table inet ours {
			chain out {
				type filter hook output priority filter
				oifname "eth0" $1
			}
		}
	R
	nft -a list table inet ours | grep oifname | tr -d '\t'
}
before=$(make drop)
nft delete table inet ours
after=$(make accept)
echo "before: $before"
echo "after:  $after"
if [ "${before##* }" = "${after##* }" ]; then
	echo "as seen: another rule, and the same handle"
else
	echo "that has changed"
	exit 1
fi
