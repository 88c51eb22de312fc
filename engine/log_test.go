// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

// costly says whether it has been formatted.
type costly struct{ formatted *int }

func (c costly) String() string { *c.formatted++; return "text" }

// What Tailscale's client writes is detail, by its own marks, and what is not
// written is not formatted.
func TestBridge(t *testing.T) {
	for _, c := range []struct {
		level     slog.Level
		formatted int
		want      string
	}{
		{slog.LevelInfo, 0, ""},
		{slog.LevelDebug, 1, "DEBUG plain text|"},
		{LevelTrace, 4, "DEBUG plain text|DEBUG-4 [v1] fine text|DEBUG-4 wg: [v2] finer text|DEBUG-4 control: [v\\x00JSON]1text|"},
	} {
		var out bytes.Buffer
		seen, formatted := 0, 0
		l := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: c.level}))
		logf := bridge(l, newChatter(), func(string, []any) { seen++ })
		arg := costly{&formatted}
		logf("plain %v\n", arg)
		logf("[v1] fine %v", arg)
		logf("wg: [v2] finer %v", arg)
		logf("control: [v\x00JSON]1%v", arg)
		var got strings.Builder
		for line := range strings.Lines(out.String()) {
			_, line, _ = strings.Cut(line, "level=")
			level, line, _ := strings.Cut(line, " msg=")
			msg, ok := strings.CutSuffix(line, " from=tailscale\n")
			if !ok {
				t.Errorf("where is %q from?", line)
			}
			got.WriteString(level + " " + strings.Trim(msg, `"`) + "|")
		}
		if got.String() != c.want || formatted != c.formatted || seen != 4 {
			t.Errorf("at %v: %q, %d formatted, %d seen; want %q, %d and all", c.level, got.String(), formatted, seen, c.want, c.formatted)
		}
	}
}

// A node whose client writes without end has a bounded part of the log, which says
// how many lines are missing. What is not to be written anyway takes no part of it.
func TestChatterIsBounded(t *testing.T) {
	var out bytes.Buffer
	l := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	c := newChatter()
	seen := 0
	logf := bridge(l, c, func(string, []any) { seen++ })
	const lines = 10 * chatterBurst
	for range lines {
		logf("[v1] nobody wants to know")
		logf("derp is away")
	}
	written := strings.Count(out.String(), "derp is away")
	if written < chatterBurst || written > chatterBurst+chatterPerSecond*10 || seen != 2*lines {
		t.Errorf("%d lines of %d written, want %d", written, lines, chatterBurst)
	}
	dropped := c.dropped.Load()
	c.limit.SetBurst(chatterBurst + 1) // as if a second had passed
	c.limit.SetLimit(1e9)
	out.Reset()
	logf("derp is back")
	if got := out.String(); dropped == 0 || strings.Count(got, "\n") != 2 || !strings.Contains(got, "left out") || !strings.Contains(got, "derp is back") {
		t.Errorf("after %d dropped lines: %q", dropped, got)
	}
}
