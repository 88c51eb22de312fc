// SPDX-License-Identifier: BSD-3-Clause

package supervisor

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tailscale-nri/nri-plugin/internal/plugintest"
)

func testFDStore(t *testing.T) FDStore {
	t.Helper()
	s, err := newFDStore()
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
	place := testFDStore(t)
	first := OpenSockets(place)
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
	second := OpenSockets(place)
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
	second.Clear()
	third := OpenSockets(place)
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
	place := testFDStore(t)
	st := OpenSockets(place)
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

// TestForeignMessages: messages of others in the store are not taken for sockets.
func TestForeignMessages(t *testing.T) {
	place := testFDStore(t)
	for _, text := range []string{"x", string(make([]byte, 1000))} {
		if err := unix.Sendmsg(place.in, []byte(text), nil, nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	st := OpenSockets(place)
	if _, ok := st.Take("x"); ok || len(st.names) != 0 {
		t.Errorf("found %v", st.names)
	}
}
