// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"sync/atomic"

	"golang.org/x/time/rate"
	"tailscale.com/types/logger"
)

// LevelTrace is the level of tailscale.com's verbose lines ("[v1]", "[v2]").
const LevelTrace = slog.LevelDebug - 4

// These bound how many of tailscale.com's lines a node writes to the log. A start is
// about 200 lines at trace level, and a node that reaches neither control plane nor DERP
// writes 130 a minute.
const (
	chatterBurst     = 600
	chatterPerSecond = 1
)

// chatter bounds what one node has in the log of tailscale.com's lines, over all
// its sessions, and what the watch of the host's network has. It is safe for concurrent use.
type chatter struct {
	limit   *rate.Limiter
	dropped atomic.Int64 // since the last line that was written
}

func newChatter() *chatter {
	return &chatter{limit: rate.NewLimiter(chatterPerSecond, chatterBurst)}
}

// bridge returns a logf for tailscale.com that writes to l, at debug level and below, as
// many lines as c allows. If lines were dropped, a line before the next one says how
// many. observe sees every line, as format and arguments. What is not written is not
// formatted.
func bridge(l *slog.Logger, c *chatter, observe func(format string, args []any)) logger.Logf {
	return func(format string, args ...any) {
		if observe != nil {
			observe(format, args)
		}
		ctx, level := context.Background(), slog.LevelDebug
		if !l.Enabled(ctx, level) {
			return
		}
		if verbose.MatchString(format) {
			level = LevelTrace
		}
		if !l.Enabled(ctx, level) {
			return
		}
		if !c.limit.Allow() {
			c.dropped.Add(1)
			return
		}
		if n := c.dropped.Swap(0); n > 0 {
			l.Debug("lines of Tailscale's client are left out, there were too many", "lines", n, "from", "tailscale")
		}
		l.Log(ctx, level, strings.TrimSpace(fmt.Sprintf(format, args...)), "from", "tailscale")
	}
}

// verbose matches how tailscale.com marks its verbose lines (types/logger): in the
// format, before or after prefixes.
var verbose = regexp.MustCompile(`\[v(1|2|\x00JSON)\]`)
