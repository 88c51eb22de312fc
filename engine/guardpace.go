// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"log/slog"
	"slices"
	"time"
)

// recent are the times of recent events.
type recent []time.Time

// note adds a time, and returns how many there are within that duration.
func (r *recent) note(at time.Time, within time.Duration) int {
	*r = append(*r, at)
	return r.count(at, within)
}

func (r *recent) count(now time.Time, within time.Duration) int {
	*r = slices.DeleteFunc(*r, func(t time.Time) bool { return now.Sub(t) > within })
	return len(*r)
}

// pace is the pace of a guard.
type pace struct {
	restored recent // restorations, within restless
	looked   recent // looks, whatever they found, within restless
	lines    recent // in the log, within an hour
}

// pause returns the time to wait before the next look, and the number of restorations.
func (p *pace) pause(now time.Time) (pause time.Duration, restored int) {
	restored = p.restored.count(now, restless)
	if restored >= restoresAtOnce || p.looked.count(now, restless) >= looksAtOnce {
		return slowRestore, restored
	}
	return settleChanges, restored
}

// level returns the level of the guard's next line, and msg with what follows from that
// level.
func (p *pace) level(level slog.Level, msg string) (slog.Level, string) {
	switch now := time.Now(); {
	case p.lines.count(now, time.Hour) >= linesPerHour:
		return slog.LevelDebug, msg
	case p.lines.note(now, time.Hour) == linesPerHour:
		msg += " (no more of this within the hour)"
	}
	return level, msg
}
