// SPDX-License-Identifier: BSD-3-Clause

package nri

import (
	"context"
	"fmt"
	"log/slog"

	nrilog "github.com/containerd/nri/pkg/log"
)

var _ nrilog.Logger = quietLogger{}

// quietLogger has the NRI stub's messages at debug level, whatever level they
// come with: the errors that matter are returned, and reported here.
type quietLogger struct{ log *slog.Logger }

// NewQuietLogger returns a quietLogger that writes to log.
func NewQuietLogger(log *slog.Logger) nrilog.Logger { return quietLogger{log} }

func (l quietLogger) Debugf(ctx context.Context, f string, a ...any) { l.print(ctx, f, a) }
func (l quietLogger) Infof(ctx context.Context, f string, a ...any)  { l.print(ctx, f, a) }
func (l quietLogger) Warnf(ctx context.Context, f string, a ...any)  { l.print(ctx, f, a) }
func (l quietLogger) Errorf(ctx context.Context, f string, a ...any) { l.print(ctx, f, a) }

func (l quietLogger) print(ctx context.Context, format string, args []any) {
	if l.log.Enabled(ctx, slog.LevelDebug) {
		l.log.DebugContext(ctx, fmt.Sprintf(format, args...), "from", "nri")
	}
}
