// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"fmt"
	"log/slog"
	"regexp"
	"strings"

	"tailscale.com/types/logger"
)

// LevelTrace is the level of tailscale.com's verbose lines ("[v1]", "[v2]").
const LevelTrace = slog.LevelDebug - 4

// bridge returns a logf for tailscale.com that writes to l: all of it is
// detail, so it comes at debug level and below. observe sees every line, as
// format and arguments, before it is formatted.
func bridge(l *slog.Logger, observe func(format string, args []any)) logger.Logf {
	return func(format string, args ...any) {
		if observe != nil {
			observe(format, args)
		}
		ctx := context.Background()
		if !l.Enabled(ctx, slog.LevelDebug) {
			return
		}
		line, level := strings.TrimSpace(fmt.Sprintf(format, args...)), slog.LevelDebug
		if verbose.MatchString(line) {
			level = LevelTrace
		}
		l.Log(ctx, level, line, "from", "tailscale")
	}
}

// verbose matches how tailscale.com marks its verbose lines (types/logger).
var verbose = regexp.MustCompile(`\[v(1|2|\x00JSON)\]`)
