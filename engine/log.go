// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"fmt"
	"log/slog"
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
		level := slog.LevelDebug
		if strings.Contains(format, "[v1]") || strings.Contains(format, "[v2]") || strings.Contains(format, "[v\x00JSON]") {
			level = LevelTrace
		}
		if l.Enabled(context.Background(), level) {
			l.Log(context.Background(), level, strings.TrimSpace(fmt.Sprintf(format, args...)), "from", "tailscale")
		}
	}
}
