// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tailscale-nri/nri-plugin/internal/plugintest"
)

func testShelf(t *testing.T) shelf {
	t.Helper()
	s, err := newShelf()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Close(s.in)
		unix.Close(s.out)
	})
	return s
}

// testSocket returns the write end of a pipe, and what tells whether anybody
// holds it still.
func testSocket(t *testing.T) (fd int, held func() bool) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(p[0]) })
	return p[1], func() bool {
		_, err := unix.Read(p[0], make([]byte, 1))
		return errors.Is(err, unix.EAGAIN)
	}
}

// TestSocketStore: what one process leaves, the next one finds, and the one
// after that as well.
func TestSocketStore(t *testing.T) {
	const many = 300
	place := testShelf(t)
	first := openStore(place)
	held := map[string]func() bool{}
	var names []string
	for i := range many {
		name := fmt.Sprintf("ts%012d", i)
		fd, h := testSocket(t)
		first.Keep(name, fd)
		unix.Close(fd)
		held[name] = h
		names = append(names, name)
	}
	first.Drop(names[0])
	second := openStore(place)
	second.Retain(names[2:])
	if _, ok := second.Take(names[1]); ok {
		t.Error("took what was not retained")
	}
	for _, name := range names[2:] {
		fd, ok := second.Take(name)
		if _, again := second.Take(name); !ok || again {
			t.Fatalf("%s: taken %v, and again %v", name, ok, again)
		}
		unix.Close(fd)
	}
	for name, held := range held {
		want := slices.Contains(names[2:], name)
		if got := settles(held, want); got != want {
			t.Errorf("%s: held %v, want %v", name, got, want)
		}
	}
	second.clear()
	third := openStore(place)
	for name, held := range held {
		if _, ok := third.Take(name); ok || held() {
			t.Errorf("%s is left after the end", name)
		}
	}
}

// settles waits for what is done later.
func settles(is func() bool, want bool) bool {
	for deadline := time.Now().Add(plugintest.Patience); is() != want && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	return is()
}

// TestKeepReplaces: a name has one socket, the last.
func TestKeepReplaces(t *testing.T) {
	place := testShelf(t)
	st := openStore(place)
	before, heldBefore := testSocket(t)
	after, heldAfter := testSocket(t)
	st.Keep("a", before)
	st.Keep("a", after)
	unix.Close(before)
	unix.Close(after)
	if settles(heldBefore, false) || !heldAfter() {
		t.Errorf("the first is held %v, the second %v", heldBefore(), heldAfter())
	}
}

// TestForeignMessages on the shelf are no sockets.
func TestForeignMessages(t *testing.T) {
	place := testShelf(t)
	for _, text := range []string{"x", string(make([]byte, 1000))} {
		if err := unix.Sendmsg(place.in, []byte(text), nil, nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	st := openStore(place)
	if _, ok := st.Take("x"); ok || len(st.names) != 0 {
		t.Errorf("found %v", st.names)
	}
}

// keepPacketSockets is a child that has as many pods as fit a machine.
func keepPacketSockets() {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		panic(err)
	}
	st, found := openStore(shelf{in: shelfInFD, out: shelfOutFD}), 0
	for i := range manySockets {
		name := fmt.Sprintf("ts%d", i)
		if _, ok := st.Take(name); ok {
			found++
			continue
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0x300, Ifindex: lo.Index})
		}
		if err != nil {
			panic(err)
		}
		st.Keep(name, fd)
	}
	findParent(os.Getenv).mark(markServes)
	fmt.Fprintf(os.Stderr, "found %d sockets\n", found)
	select {}
}

const manySockets = 50

// TestSocketsOutliveTheChild, which therefore is dead, and followed by the
// next, long before the kernel could have closed them.
func TestSocketsOutliveTheChild(t *testing.T) {
	p := begin(t, t.TempDir(), func(cmd *exec.Cmd) {
		cmd.Env = append(cmd.Env, plugintest.RoleVar+"=sockets")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	})
	p.await(t, "found 0 sockets", 1)
	for i := range 3 {
		killed := time.Now()
		p.signal(t, p.only(t), syscall.SIGKILL)
		p.await(t, fmt.Sprintf("found %d sockets", manySockets), i+1)
		t.Logf("again after %v", time.Since(killed).Round(time.Millisecond))
	}
	p.end(t, syscall.SIGKILL)
}

// TestStandByEmptiesTheShelf: another process serves the links by then.
func TestStandByEmptiesTheShelf(t *testing.T) {
	place := testShelf(t)
	fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	openStore(place).Keep("ts1", fd)
	(&daemon{health: &health{}, log: slog.New(slog.DiscardHandler)}).standBy(place)
	if st := openStore(place); len(st.found) != 0 {
		t.Errorf("the shelf still has %v", st.found)
	}
}
