// SPDX-License-Identifier: BSD-3-Clause

package plugintest

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

// LogBook is a log that can be waited for.
type LogBook struct {
	mu    sync.Mutex
	text  strings.Builder
	Grown chan struct{}
}

// NewLogBook is an empty one.
func NewLogBook() *LogBook { return &LogBook{Grown: make(chan struct{}, 1)} }

// Write implements [io.Writer].
func (b *LogBook) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case b.Grown <- struct{}{}:
	default:
	}
	return b.text.Write(p)
}

// Count says how often the log has said s.
func (b *LogBook) Count(s string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.text.String(), s)
}

// String returns the whole log.
func (b *LogBook) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// Wait waits until the log has said s for the nth time.
func (b *LogBook) Wait(t *testing.T, s string, n int) {
	t.Helper()
	for b.Count(s) < n {
		Receive(t, b.Grown, fmt.Sprintf("the log to say %q %d times", s, n))
	}
}
