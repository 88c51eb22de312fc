// SPDX-License-Identifier: BSD-3-Clause

package wait

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var errNotYet = errors.New("not yet")

func TestUntil(t *testing.T) {
	ended := make(chan struct{})
	close(ended)
	for _, c := range []struct {
		name  string
		ended chan struct{}
		check func(calls int, cancel func()) error
		want  string
	}{
		{"at once", nil, func(int, func()) error { return nil }, ""},
		{"the third time", nil, func(n int, _ func()) error {
			if n < 3 {
				return errNotYet
			}
			return nil
		}, ""},
		{"has passed before it ended", ended, func(int, func()) error { return nil }, ""},
		{"ended", ended, func(int, func()) error { return errNotYet }, "not yet (it has ended)"},
		{"cancelled", nil, func(_ int, cancel func()) error { cancel(); return errNotYet }, "not yet (given up: context canceled)"},
		{"cut off by its context", nil, func(n int, cancel func()) error {
			if n < 2 {
				return errNotYet
			}
			cancel()
			return context.Canceled
		}, "not yet (given up: context canceled)"},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		calls := 0
		err := UntilEnd(ctx, time.Millisecond, c.ended, func(context.Context) error {
			calls++
			return c.check(calls, cancel)
		})
		cancel()
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, errNotYet) || err.Error() != c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
		if errors.Is(err, ErrEnded) != strings.Contains(c.want, "ended") {
			t.Errorf("%s: got %v", c.name, err)
		}
	}
}

func TestPause(t *testing.T) {
	if err := Pause(t.Context(), time.Millisecond); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errNotYet)
	if err := Pause(ctx, time.Hour); !errors.Is(err, errNotYet) {
		t.Errorf("got %v", err)
	}
}

// TestLatest has a value that was set before the wait not be seen, and each later one be.
func TestLatest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Latest[int]
		l.Set(3)
		var seen []int
		ended := make(chan error, 1)
		go func() {
			ended <- l.Until(t.Context(), func(n int) error {
				if seen = append(seen, n); n < 3 {
					return errNotYet
				}
				return nil
			})
		}()
		for n := range 5 {
			synctest.Wait()
			l.Set(n)
		}
		if err := <-ended; err != nil || !slices.Equal(seen, []int{0, 1, 2, 3}) {
			t.Errorf("saw %v: %v", seen, err)
		}
	})
}

// TestLatestMissesNone has the only value come while the one before is looked at.
func TestLatestMissesNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Latest[int]
		go func() { synctest.Wait(); l.Set(1) }()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := l.Until(ctx, func(n int) error {
			if n == 1 {
				l.Set(2)
				return errNotYet
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

func TestLatestGivesUp(t *testing.T) {
	var l Latest[int]
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := l.Until(ctx, func(int) error { return nil })
	if want := fmt.Sprintf("no answer (given up: %v)", context.Canceled); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
