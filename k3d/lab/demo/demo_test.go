// SPDX-License-Identifier: BSD-3-Clause

package demo

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestAlike holds networks of two pods against each other that differ in what differs from pod to pod, and then in one
// thing more.
func TestScreen(t *testing.T) {
	for _, c := range []struct {
		name   string
		screen *Screen
		want   string
	}{
		{"plain", &Screen{tick: "ok", cross: "FAILED"}, "\n1. Act\n  ok   123 ms  seen a\n  ok           seen b\n  FAILED why\n"},
		{"live", &Screen{tick: "v", cross: "x", live: true}, "\r\x1b[K\n1. Act\n\r\x1b[K           ... doing\r\x1b[K  v   123 ms  seen a\n\r\x1b[K  v           seen b\n\r\x1b[K  x why\n"},
	} {
		var out bytes.Buffer
		c.screen.out = &out
		show(c.screen)
		if out.String() != c.want {
			t.Errorf("%s: showed %q, want %q", c.name, out.String(), c.want)
		}
	}
	show(nil) // shows nothing
}

func show(s *Screen) {
	s.Act(1, "Act")
	s.Doing("doing")
	s.Saw(123*time.Millisecond, "seen %s", "a")
	s.Saw(0, "seen b")
	s.Failed(errors.New("why"))
}

// TestScreenOnFile: what is not a terminal gets ASCII alone.
func TestScreenOnFile(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	show(NewScreen(file))
	text, err := os.ReadFile(file.Name())
	if err != nil || len(text) == 0 || bytes.ContainsFunc(text, func(r rune) bool { return r > '~' || r < ' ' && r != '\n' }) {
		t.Errorf("%q, %v", text, err)
	}
}

// TestOwnTailnetHidesSecret: neither a log nor an error shows it.
