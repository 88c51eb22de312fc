// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"testing"

	"tailscale-nri/k3d/lab/control"
)

// deviceNamed returns a device of the control plane's, which has only one of that
// hostname.
func deviceNamed(t *testing.T, srv *control.Server, hostname string) (found control.Device) {
	t.Helper()
	n := 0
	for _, d := range srv.Devices() {
		if d.Hostname == hostname {
			found = d
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d devices are called %s, want one", n, hostname)
	}
	return found
}

// An ephemeral node is a device that the control plane deletes when it is logged
// out or offline for long. No end of this process logs it out: it keeps device and
// addresses over a restart and a roll. What the control plane has deleted meanwhile
// comes back by itself, as another ephemeral device.
func TestEphemeral(t *testing.T) {
	w := newWorld(t)
	w.boot()
	_, pod := w.pod("job")
	pod.Features.Ephemeral = true
	_, plain := w.pod("web")
	w.mustAttach(pod)
	w.mustAttach(plain)
	before := w.await(pod.UID, Running)
	w.await(plain.UID, Running)
	if !deviceNamed(t, w.control, pod.Hostname).Ephemeral || deviceNamed(t, w.control, plain.Hostname).Ephemeral {
		t.Errorf("devices: %+v, want that of %s alone to be ephemeral", w.control.Devices(), pod.Hostname)
	}

	for _, how := range []string{"restart", "roll"} {
		claimed := make(chan *Claim, 1)
		if how == "roll" { // the next process stands by before this one ends
			go func() {
				c, err := ClaimState(context.Background(), w.dir, nil)
				if err != nil {
					t.Error(err)
				}
				claimed <- c
			}()
		} else {
			claimed <- nil
		}
		w.halt()
		w.boot(func(c *Config) { c.Claim = <-claimed })
		after := w.await(pod.UID, Running)
		if after.NodeID != before.NodeID || after.Addresses[0] != before.Addresses[0] || !after.Features.Ephemeral {
			t.Errorf("%s: the node is %s at %v, was %s at %v", how, after.NodeID, after.Addresses, before.NodeID, before.Addresses)
		}
	}
	if n := w.control.Counters().KeysMinted; n != 2 {
		t.Errorf("%d keys were minted for two pods", n)
	}

	w.halt()
	if err := w.control.Delete(before.NodeID); err != nil { // offline for too long
		t.Fatal(err)
	}
	w.boot()
	w.until("another device", func() bool {
		s := w.statusOf(pod.UID)
		return s.State == Running && s.NodeID != before.NodeID
	}, func() string { return w.statusOf(pod.UID).Reason })
	if d := deviceNamed(t, w.control, pod.Hostname); !d.Ephemeral {
		t.Errorf("the device that took its place is %+v", d)
	}
	if err := w.Forget(context.Background(), pod.SandboxID); err != nil {
		t.Fatal(err)
	}
	w.awaitForgotten(pod.UID)
	if d := w.control.Devices(); len(d) != 1 {
		t.Errorf("devices: %+v, want the other pod's alone", d)
	}
}

// Nor does kill -9 cost an ephemeral node its device.
func TestEphemeralKilled(t *testing.T) {
	m := newRig(t, scenario{})
	m.start(false, nil)
	s := m.newSandbox("a", "a", "job")
	s.Features.Ephemeral = true
	if err := m.attach(s); err != "" {
		t.Fatal(err)
	}
	m.awaitState(s, Running)
	before := m.status(s.UID)
	for range 2 {
		m.kill()
		m.start(false, nil)
		m.awaitState(s, Running)
		if after := m.status(s.UID); after.NodeID != before.NodeID || after.Addresses[0] != before.Addresses[0] {
			t.Errorf("the node is %s at %v, was %s at %v", after.NodeID, after.Addresses, before.NodeID, before.Addresses)
		}
	}
	if d := deviceNamed(t, m.control, s.Hostname); !d.Ephemeral || d.ID != before.NodeID {
		t.Errorf("the device is %+v, was %s", d, before.NodeID)
	}
}
