#!/usr/bin/env bash
# nft-handles-begin-again: whether a rule's handle tells it from every rule that was in the table before.
#
# Linux 6.18; nftables of Debian 12 and later.
# Guess: handles count up, as the numbers of the ruleset's generations do, so an equal handle is still the same rule.
# Seen:  each table has its own count, and that of a table which is deleted and made again begins at 1. A program that
#   remembers handles to see whether others have touched its rules takes another table of the same shape, with rules
#   that accept everything, for its own. The generation (nft monitor) does go on.
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
