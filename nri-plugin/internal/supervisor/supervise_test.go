// SPDX-License-Identifier: BSD-3-Clause

package supervisor

import (
	"testing"
	"time"
)

// TestPauses between children, in a row that none of the ends is meant in.
func TestPauses(t *testing.T) {
	short, long := ending{served: true, lived: time.Second}, ending{served: true, lived: longLife}
	var s supervisor
	for i, tt := range []struct {
		end   ending
		pause time.Duration
	}{
		{short, 0},
		{short, minPause},
		{short, 2 * minPause},
		{short, 4 * minPause},
		{long, 0},
		{short, 0},
		{short, minPause},
	} {
		if pause, again := s.next(tt.end); pause != tt.pause || !again {
			t.Errorf("%d: pause %v, again %v, want %v", i, pause, again, tt.pause)
		}
	}
	for range 100 {
		if pause, again := s.next(short); pause > maxPause || pause <= 0 || !again {
			t.Fatalf("pause %v, again %v", pause, again)
		}
	}
}
