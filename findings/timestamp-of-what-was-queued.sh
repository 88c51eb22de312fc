#!/usr/bin/env bash
# timestamp-of-what-was-queued: the receive timestamp of a packet that was queued before SO_TIMESTAMPNS was set.
#
# Linux 6.18, net/socket.c; set and read with golang.org/x/sys v0.49.0.
# Guess: a packet that was queued before the option was set has no timestamp, or that of its arrival.
# Seen:  it has the time at which it is read, as if it had arrived then, and nothing marks it. A packet that arrives in
#   the first millisecond after the option was set, by the first socket of the machine that wants timestamps, may be stamped in
#   the same way, since the kernel switches stamping on later than it returns from setsockopt. So "everything that
#   arrived before T" cannot be told by these stamps from a socket that has just been opened: a capture that ended at
#   T by them lost up to nine tenths of its bytes.
# Exits 1 if that has changed. Needs Go 1.21 or later and the module proxy; traffic stays on loopback.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
export GOTOOLCHAIN=go1.27.4 GOWORK=off GOFLAGS=-mod=mod

cat >go.mod <<'END'
module finding

go 1.25.0

require golang.org/x/sys v0.49.0
END

cat >main.go <<'END'
package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

const pause = 500 * time.Millisecond

func main() {
	for _, early := range []bool{true, false} {
		to, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		must(err)
		from, err := net.DialUDP("udp4", nil, to.LocalAddr().(*net.UDPAddr))
		must(err)
		ask := func() {
			raw, err := to.SyscallConn()
			must(err)
			must(raw.Control(func(fd uintptr) {
				must(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1))
			}))
			time.Sleep(pause) // enough for the kernel to begin
		}
		if !early {
			ask()
		}
		sent := time.Now()
		_, err = from.Write([]byte("x"))
		must(err)
		if early {
			time.Sleep(pause)
			ask()
		} else {
			time.Sleep(2 * pause)
		}
		control := make([]byte, 256)
		_, n, _, _, err := to.ReadMsgUDP(make([]byte, 16), control)
		must(err)
		all, err := unix.ParseSocketControlMessage(control[:n])
		must(err)
		at := time.Unix(int64(binary.NativeEndian.Uint64(all[0].Data)), int64(binary.NativeEndian.Uint64(all[0].Data[8:])))
		when := map[bool]string{true: "queued before the option was set", false: "sent after it was set"}[early]
		as := map[bool]string{true: "its arrival", false: "the read, a second later"}[at.Sub(sent) < pause]
		fmt.Printf("%s: stamped with the time of %s\n", when, as)
		must(to.Close())
		must(from.Close())
	}
}
END

cat >want <<'END'
queued before the option was set: stamped with the time of the read, a second later
sent after it was set: stamped with the time of its arrival
END

go build -o finding .
./finding >seen
cat seen
diff -u want seen || { echo "timestamp-of-what-was-queued: it has changed" >&2; exit 1; }
