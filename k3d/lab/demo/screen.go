// SPDX-License-Identifier: BSD-3-Clause

package demo

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// Screen shows the play. A nil Screen shows nothing.
type Screen struct {
	mu  sync.Mutex
	out io.Writer

	tick, cross, bold, plain string
	live                     bool // what is under way is shown, and overwritten by what was seen
}

// NewScreen shows on out: with colours and ticks on a terminal, in plain ASCII elsewhere.
func NewScreen(out *os.File) *Screen {
	s := &Screen{out: out, tick: "ok", cross: "FAILED"}
	info, err := out.Stat()
	if err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb" {
		s.live, s.tick, s.cross = true, "\x1b[32m\u2713\x1b[0m ", "\x1b[31m\u2717\x1b[0m"
		s.bold, s.plain = "\x1b[1m", "\x1b[0m"
	}
	return s
}

// Act begins a part of the play.
func (s *Screen) Act(number int, title string) {
	s.print(fmt.Sprintf("\n%s%d. %s%s\n", s.style(true), number, title, s.style(false)))
}

// Doing says what is under way, on a terminal alone.
func (s *Screen) Doing(format string, args ...any) {
	if s != nil && s.live {
		s.print("           ... " + fmt.Sprintf(format, args...))
	}
}

// Saw ticks an observation off; took is 0 where time says nothing.
func (s *Screen) Saw(took time.Duration, format string, args ...any) {
	if s == nil {
		return
	}
	ms := strings.Repeat(" ", 8)
	if took != 0 {
		ms = fmt.Sprintf("%5.0f ms", float64(took)/float64(time.Millisecond))
	}
	s.print(fmt.Sprintf("  %s %s  %s\n", s.tick, ms, fmt.Sprintf(format, args...)))
}

// Note is a line that observes nothing.
func (s *Screen) Note(format string, args ...any) {
	s.print(fmt.Sprintf("              "+format+"\n", args...))
}

// Failed shows what was not as expected.
func (s *Screen) Failed(err error) {
	if s != nil {
		s.print(fmt.Sprintf("  %s %v\n", s.cross, err))
	}
}

// Text shows a text as it is.
func (s *Screen) Text(text string) { s.print(strings.TrimRight(text, "\n") + "\n") }

func (s *Screen) style(bold bool) string {
	switch {
	case s == nil:
		return ""
	case bold:
		return s.bold
	}
	return s.plain
}

// print writes over what is under way.
func (s *Screen) print(text string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live {
		text = "\r\x1b[K" + text
	}
	_, _ = io.WriteString(s.out, text) // a screen that has gone away is not a reason to stop
}
