#!/usr/bin/env bash
# hostinfo-runs-loginctl: which programs the start of a Tailscale backend runs, and how often.
#
# tailscale.com v1.104.5 (package hostinfo), built with Go 1.27.4, on Linux 6.18.
# Guess: what describes the host is read from files, once in a process. LocalBackend.Start, which asks for it with its
#   lock held, waits for no other program.
# Seen:  on Linux each hostinfo.New runs "loginctl list-sessions --json=short" where PATH has one, and one more for each
#   session that it lists until one has a desktop. It waits for them, for at most some 100 ms in all. What it has found is
#   kept only once the process is a minute old: all backends that a process starts as it begins pay for it again. Without
#   a PATH, it looks for a desktop in /proc/net/unix alone.
# Exits 1 if that has changed. Needs Go 1.21 or later and the module proxy.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
export GOTOOLCHAIN=go1.27.4 GOWORK=off GOFLAGS=-mod=mod

cat >go.mod <<'END'
module finding

go 1.27

require tailscale.com v1.104.5
END

cat >main.go <<'END'
package main

import (
	"fmt"
	"time"

	"tailscale.com/hostinfo"
)

func main() {
	hostinfo.New() // the first one also looks at the cloud, and keeps what it finds
	begin := time.Now()
	for range 3 {
		hostinfo.New()
	}
	fmt.Println("waited:", time.Since(begin) >= 60*time.Millisecond)
}
END

mkdir bin
cat >bin/loginctl <<END
#!/bin/sh
echo "\$*" >>"$dir/calls"
case \$1 in
list-sessions) sleep 0.02; echo '[{"session":"5"}]' ;;
*) echo Type=tty ;;
esac
END
chmod +x bin/loginctl
touch calls

go build -o asks . 2>build.log || { cat build.log; exit 1; }
{
	echo "with a loginctl"
	PATH="$dir/bin:$PATH" ./asks
	sort calls | uniq -c | sed 's/^ *//'
	: >calls
	echo "without a PATH"
	PATH='' ./asks
	cat calls
} >seen
cat seen
diff - seen <<'END'
with a loginctl
waited: true
4 list-sessions --json=short
4 show-session 5 --property=Type --value
without a PATH
waited: false
END
