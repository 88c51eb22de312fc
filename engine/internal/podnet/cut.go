// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"cmp"
	"sync"
	"sync/atomic"
	"time"
)

// After the kernel has refused a frame that it was to cut, a pod gets its packets one
// by one for this long, at first and at most. Each try costs a frame, which TCP sends
// again; without coalescing a pod receives a fifth of what it could.
const (
	cutPause   = 10 * time.Second
	cutLongest = 10 * time.Minute
)

// cutting says whether the kernel takes frames for a pod that it is to cut into
// segments. A refusal counts for a while, and for twice as long each time that the
// kernel took none meanwhile. Its zero value is ready to use, concurrently.
type cutting struct {
	until    atomic.Int64 // when to try again, in nanoseconds of now; 0 while nothing is refused
	refusals atomic.Uint64

	mu    sync.Mutex
	pause time.Duration                 // after the last refusal
	told  func(pause time.Duration)     // called for a refusal, unless none was taken since the last; may be nil
	clock func() (sinceSomewhere int64) // nil means now
}

var started = time.Now()

// now is a clock that does not change with the date.
func now() int64 { return int64(time.Since(started)) }

// off reports whether only frames that need no cutting are to be sent.
func (c *cutting) off() bool {
	until := c.until.Load()
	return until != 0 && c.now() < until
}

func (c *cutting) now() int64 {
	if c.clock != nil {
		return c.clock()
	}
	return now()
}

// refused notes that the kernel has refused a frame that it was to cut.
func (c *cutting) refused() {
	c.mu.Lock()
	first := c.pause == 0
	c.pause = min(cmp.Or(2*c.pause, cutPause), cutLongest)
	pause, told := c.pause, c.told
	c.until.Store(c.now() + int64(pause))
	c.mu.Unlock()
	c.refusals.Add(1)
	if first && told != nil {
		told(pause)
	}
}

// taken notes that the kernel has taken such a frame.
func (c *cutting) taken() {
	if c.until.Load() == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pause = 0
	c.until.Store(0)
}

// OnCutRefused has Write call told when the kernel refuses a frame that it was to cut
// into segments. pause is the time until the next such frame is tried. Meanwhile the pod
// gets single packets, which is slower. It is not called again for refusals that follow
// before a frame was taken. Call OnCutRefused before the first Write.
func (d *Device) OnCutRefused(told func(pause time.Duration)) { d.out.cut.told = told }

// CutRefusals returns how many frames the kernel has refused to cut into segments.
func (d *Device) CutRefusals() uint64 { return d.out.cut.refusals.Load() }
