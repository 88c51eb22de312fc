// SPDX-License-Identifier: BSD-3-Clause

package statussocket

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/settings"
	"tailscale-nri/nri-plugin/internal/status"
)

// TestStatusWatch: one table for each change, and none for what only counts on; a
// process that goes away is shown, and that it comes back.
func TestStatusWatch(t *testing.T) {
	var mu sync.Mutex
	r := status.Report{APIVersion: status.APIVersion, Ready: true, Nodes: []status.Node{{Namespace: "a", Pod: "b", State: status.Pending}}}
	asked := make(chan struct{})
	socket := plugintest.AnswerStatus(t, func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if !r.Ready {
			http.NotFound(w, nil)
		} else {
			answerJSON(w, r)
		}
		select {
		case asked <- struct{}{}:
		default:
		}
	})
	out := plugintest.NewLogBook()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	s := statusWatch{socket: socket, every: time.Millisecond, w: out}
	go func() { ended <- s.run(ctx) }()
	change := func(f func()) {
		for range 2 { // one that may have been under way, and one after it
			plugintest.Receive(t, asked, "a question")
		}
		mu.Lock()
		defer mu.Unlock()
		f()
	}
	out.Wait(t, "Pending", 1)
	change(func() { r.Nodes[0].BytesIn = 10 })
	change(func() { r.Nodes[0].State = status.Running })
	out.Wait(t, "Running", 1)
	change(func() { r.Ready = false })
	out.Wait(t, "older than this command", 1)
	change(func() { r.Ready = true })
	change(func() {})
	stop()
	if err := plugintest.Receive(t, ended, "the end"); err != nil {
		t.Errorf("it ended with %v", err)
	}
	if n, tables := strings.Count(out.String(), "POD"), strings.Split(out.String(), "\n\nPOD"); n != 4 || len(tables) != 4 {
		t.Errorf("%d tables, %d of them apart:\n%s", n, len(tables), out)
	}

	gone := statusWatch{socket: socket + "x", every: time.Millisecond, w: out}
	if err := gone.run(t.Context()); !errors.As(err, new(CannotAsk)) {
		t.Errorf("watching nobody: %v", err)
	}
	var screen strings.Builder
	s = statusWatch{w: &screen, redraw: true}
	for range 2 {
		if err := s.show([]status.Report{r}, []status.Report{r}); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Count(screen.String(), "\x1b[2J\x1b[HPOD") != 2 {
		t.Errorf("the screen has %q", screen.String())
	}
}

func TestStatusOfNobody(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "status.sock")
	err := Show(context.Background(), socket, View{}, nil)
	if !errors.As(err, new(CannotAsk)) || !plugintest.ErrContains(err, "no process answers on "+socket) || !strings.Contains(err.Error(), settings.StatusSocket) {
		t.Errorf("got %v", err)
	}
}
