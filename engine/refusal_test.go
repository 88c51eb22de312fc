// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"tailscale-nri/engine/tailnet"
)

// A static key that is spent says so, with the variable that it is in.
func TestSpentStaticKey(t *testing.T) {
	w := newWorld(t)
	access, err := tailnet.NewStatic(tailnet.StaticConfig{AuthKey: w.control.NewKey("tag:k8s-pod"), ControlURL: w.control.ControlURL()})
	if err != nil {
		t.Fatal(err)
	}
	w.tailnet = access
	w.boot()
	w.join("a")
	_, b := w.pod("b")
	w.mustAttach(b)
	var last string
	w.until("the second node says why it is not up", func() bool {
		last = w.await(b.UID, Pending).Reason
		return strings.Contains(last, "StaticConfig.AuthKey")
	}, func() string { return last })
}

// An attempt that was given up while another kept it waiting does nothing any
// more, and leaves nothing.
func TestAttachGivenUp(t *testing.T) {
	w := newWorld(t)
	w.boot()
	_, pod := w.pod("a")
	for _, attached := range []bool{false, true} {
		n := w.nodeOf(pod)
		late := pod
		late.SandboxID = "sblate"
		ctx, giveUp := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		n.op.Lock()
		go func() {
			_, err := w.Attach(ctx, late)
			ended <- err
		}()
		select {
		case err := <-ended:
			t.Fatalf("it did not wait for its turn (%v)", err)
		case <-time.After(50 * time.Millisecond):
		}
		giveUp()
		n.op.Unlock()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Attach = %v", err)
		}
		if s := w.statusOf(pod.UID); s.SandboxID == late.SandboxID || (s.UID != "") != attached {
			t.Errorf("the node is %+v", s)
		}
		w.mustAttach(pod)
		w.await(pod.UID, Running)
	}
}
