// SPDX-License-Identifier: BSD-3-Clause

package statussocket

import (
	"context"
	"testing"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/plugintest"
)

// TestLive: an engine that hangs is asked once, and is not live; any other is,
// whatever the runtime does.
func TestLive(t *testing.T) {
	h := &Health{}
	if err := h.live(t.Context()); err != nil {
		t.Errorf("without an engine: %v", err)
	}
	asked, answer := make(chan struct{}, 10), make(chan struct{})
	h.Serves(hangingPods(func() {
		asked <- struct{}{}
		<-answer
	}))
	short, cancel := context.WithCancel(t.Context())
	cancel()
	for range 3 {
		if err := h.live(short); err == nil {
			t.Error("it is live and hangs")
		}
	}
	plugintest.Receive(t, asked, "the question")
	if len(asked) != 0 {
		t.Error("it was asked again and again")
	}
	close(answer)
	if err := h.live(t.Context()); err != nil {
		t.Errorf("it answers again, but: %v", err)
	}
}

// hangingPods waits before it answers; what takes longer is not to be asked.
type hangingPods func()

func (p hangingPods) Status() []engine.NodeStatus { p(); return nil }
func (p hangingPods) Details() []engine.Detail    { panic("a probe measures nothing") }
