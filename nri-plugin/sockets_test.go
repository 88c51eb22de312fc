// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/statussocket"
	"tailscale-nri/nri-plugin/internal/supervisor"
)

// keepPacketSockets is a child that has as many pods as fit a host.
func keepPacketSockets() {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		panic(err)
	}
	up := supervisor.FindParent(os.Getenv)
	place, err := up.FDStore()
	if err != nil {
		panic(err)
	}
	st, found := supervisor.OpenSockets(place), 0
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
	up.Mark(supervisor.MarkServes)
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

// TestStandByEmptiesTheStore: another process serves the links by then.
func TestStandByEmptiesTheStore(t *testing.T) {
	place, err := supervisor.Parent{}.FDStore()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	supervisor.OpenSockets(place).Keep("ts1", fd)
	(&daemon{health: &statussocket.Health{}, log: slog.New(slog.DiscardHandler)}).standBy(place)
	if _, ok := supervisor.OpenSockets(place).Take("ts1"); ok {
		t.Error("the store still has the socket")
	}
}
