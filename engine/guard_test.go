// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"tailscale-nri/engine/internal/podnet"
)

// logBuffer is a log that is read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuffer) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

// Changes of a running node's link are undone, and its pod talks again, with one line
// in the log. Changes that are repeated are in status, and the node goes on.
func TestLinkIsGuarded(t *testing.T) {
	w := newWorld(t)
	var log logBuffer
	w.boot(func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	a, podA := w.pod("a")
	b, podB := w.pod("b")
	serveEcho(t, b)
	w.mustAttach(podA)
	w.mustAttach(podB)
	nodeA, nodeB := w.await(podA.UID, Running), w.await(podB.UID, Running)
	h := a.Netlink()
	ts0, err := h.LinkByName(podnet.PodLink)
	if err != nil {
		t.Fatal(err)
	}
	host, err := netlink.LinkByName(podnet.HostLink(podA.SandboxID))
	if err != nil {
		t.Fatal(err)
	}
	const line = "ts0 was changed from outside, and is restored"
	changes, quickest := 0, time.Hour
	restored := func(change error) {
		t.Helper()
		if change != nil {
			t.Fatal(change)
		}
		changes++
		start := time.Now()
		w.until(fmt.Sprintf("change %d is restored", changes), func() bool {
			addrs, err := addresses(a)
			return err == nil && len(addrs) == 2 && log.count(line) >= changes
		}, func() string { return fmt.Sprint(addresses(a)) })
		quickest = min(quickest, time.Since(start))
		for i := range 2 {
			expectCaller(t, a, nodeB.Addresses[i], nodeA.Addresses[i])
		}
		if n := log.count(line); n != changes {
			t.Errorf("%d lines in the log of %d changes", n, changes)
		}
	}
	restored(errors.Join(h.LinkSetDown(ts0), h.LinkSetUp(ts0)))
	restored(netlink.LinkSetDown(host))
	restored(netlink.LinkSetName(host, "tsrenamed"))
	if s := w.await(podA.UID, Running); s.Reason != "" {
		t.Errorf("the reason is %q after %d changes", s.Reason, changes)
	}
	for changes < restoresAtOnce-1 {
		restored(h.LinkSetHardwareAddr(ts0, net.HardwareAddr{2, 0, 0, 0, 0, byte(changes)}))
	}
	// Of some, since any one of them may meet a machine that is busy.
	if quickest > 2*time.Second {
		t.Errorf("the quickest of %d restorations took %v", changes, quickest)
	}
	if err := h.LinkSetHardwareAddr(ts0, net.HardwareAddr{2, 0, 0, 0, 0, 99}); err != nil {
		t.Fatal(err)
	}
	w.until("status says that this was often", func() bool {
		s := w.await(podA.UID, Running)
		return strings.Contains(s.Reason, "changed from outside 6 times within a minute, last: ts0 had another MAC address")
	}, func() string { return fmt.Sprintf("%+v", w.Status()) })
	// The next one is restored later, and the state says so until then.
	if err := h.LinkSetDown(ts0); err != nil {
		t.Fatal(err)
	}
	s := w.await(podA.UID, Pending)
	if !strings.Contains(s.Reason, "restoring it in 2s") {
		t.Errorf("the reason is %q", s.Reason)
	}
	w.await(podA.UID, Running)
	expectCaller(t, a, nodeB.Addresses[0], nodeA.Addresses[0])
	if n := log.count("ts0 keeps being changed"); n != 1 {
		t.Errorf("%d lines in the log of what keeps coming, want 1", n)
	}

	// A node that was detached is left alone, and a Detach does not wait.
	if err := w.Detach(t.Context(), podA.SandboxID); err != nil {
		t.Fatal(err)
	}
	w.await(podA.UID, Stopped)
	if found, err := podnet.Exists(podnet.HostLink(podA.SandboxID)); found || err != nil {
		t.Errorf("the link of a detached sandbox is there (%v)", err)
	}
}
