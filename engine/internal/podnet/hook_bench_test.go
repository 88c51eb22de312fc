// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"tailscale-nri/engine/internal/nstest"
)

// BenchmarkEnsure makes the link of a new pod, which a pod's start waits for, with
// nothing else to do and beside goroutines that want all processors, as nodes do that
// start.
func BenchmarkEnsure(b *testing.B) {
	for _, busy := range []int{0, 16} {
		b.Run(fmt.Sprintf("busy=%d", busy), func(b *testing.B) {
			var stop atomic.Bool
			defer stop.Store(true)
			for range busy {
				go func() {
					for !stop.Load() {
						for begin := time.Now(); time.Since(begin) < 3*time.Millisecond; {
						}
						runtime.Gosched()
					}
				}()
			}
			var took []time.Duration
			for i := range b.N {
				pod := nstest.NewPod(b)
				begin := time.Now()
				ns, err := FindNamespace(pod.Path())
				if err != nil {
					b.Fatal(err)
				}
				host := HostLink(fmt.Sprint("bench", i))
				if _, err := Ensure(ns, host, nil); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(begin))
				if err := Remove(host); err != nil {
					b.Fatal(err)
				}
				pod.End()
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
		})
	}
}
