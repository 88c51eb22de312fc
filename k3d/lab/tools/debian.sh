#!/bin/sh
# debian.sh PACKAGE...: installs the Debian packages that are missing; says in one line what is wrong when it cannot.
set -u
missing=
for package; do
	dpkg-query -W -f '${Status}\n' "$package" 2>/dev/null | grep -q '^install ok installed$' || missing="$missing $package"
done
[ -z "$missing" ] && exit 0

fail() {
	echo "missing Debian packages:$missing ($1); install them with: apt-get install$missing" >&2
	exit 1
}
[ "$(id -u)" = 0 ] || fail "not root, so they cannot be installed from here"
command -v apt-get >/dev/null || fail "no apt-get on this machine"
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086 # the list is meant to be split
apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 ||
	{ apt-get update -qq >/dev/null 2>&1 && apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1; } ||
	fail "apt-get failed"
echo "installed$missing"
