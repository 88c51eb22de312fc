// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"tailscale.com/tstime"
)

// Fifty pods come and go in parallel, most of them before they are up. Nothing
// may be left of them: no device, link, goroutine, descriptor or file.
func TestChurnLeavesNothing(t *testing.T) {
	w := newWorld(t)
	w.boot()
	_, first := w.pod("first")
	w.mustAttach(first)
	w.await(first.UID, Running)
	w.Forget(context.Background(), first.SandboxID)
	w.awaitForgotten(first.UID)
	before := countResources(t)

	const pods = 50
	slots := make(chan struct{}, 10)
	done := make(chan error, pods)
	for i := range pods {
		p, pod := w.pod(fmt.Sprintf("churn%d", i))
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			ctx := context.Background()
			_, err := w.Attach(ctx, pod)
			tstime.Sleep(ctx, rand.N(300*time.Millisecond))
			w.Detach(ctx, pod.SandboxID)
			p.End()
			w.Forget(ctx, pod.SandboxID)
			done <- err
		}()
	}
	for range pods {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	w.until("all are forgotten", func() bool { return len(w.Status()) == 0 },
		func() string { return fmt.Sprint(w.Status()) })
	if d := w.control.Devices(); len(d) != 0 {
		t.Errorf("%d devices are left: %v", len(d), d)
	}
	if left := w.entries(); len(left) != 0 {
		t.Errorf("left on disk: %q", left)
	}
	// Connections to the API are kept for the next call, with both ends here.
	const slack = 10
	var after resources
	w.until("resources are back", func() bool {
		after = countResources(t)
		return after.links <= before.links && after.fds <= before.fds+slack && after.goroutines <= before.goroutines+slack
	}, func() string {
		var b strings.Builder
		pprof.Lookup("goroutine").WriteTo(&b, 1)
		return fmt.Sprintf("%+v, before %+v, descriptors %v\n%s", after, before, descriptors(), b.String())
	})
	t.Logf("before %+v, after %+v", before, after)
}

func descriptors() (targets []string) {
	fds, _ := filepath.Glob("/proc/self/fd/*")
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err == nil {
			targets = append(targets, target)
		}
	}
	return targets
}

type resources struct{ links, fds, goroutines int }

func countResources(t *testing.T) resources {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return resources{len(links), len(fds), runtime.NumGoroutine()}
}
