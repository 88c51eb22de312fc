// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"bufio"
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/demo"
	"tailscale-nri/k3d/lab/scene"
)

// TestInterruptedDemo ends the demo in its middle, as Ctrl-C does: nothing stays, KEEP=1 or not.
func TestInterruptedDemo(t *testing.T) {
	t.Parallel()
	for _, moment := range []string{"tailnet: the lab's own", "Two pods opt in", "The plugin is killed"} {
		cfg := config(t, "ctrl-c")
		ctx, interrupt := context.WithCancel(t.Context())
		read, write, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		shown := make(chan string)
		go func() { shown <- readUntil(read, moment, interrupt) }()
		err = demo.Run(ctx, demo.Config{Config: scene.Config{Lab: cfg}, Screen: demo.NewScreen(write)}, true)
		write.Close()
		if text := <-shown; err == nil || !errors.Is(ctx.Err(), context.Canceled) || strings.Contains(text, "All of it was observed") {
			t.Errorf("interrupted at %q: %v\n%s", moment, err, text)
		}
		if left, err := lab.Remains(cfg); err != nil || len(left) > 0 {
			t.Errorf("left after an interruption at %q: %q, %v", moment, left, err)
		}
	}
}

// readUntil calls then when moment is shown, and returns all that is.
func readUntil(from *os.File, moment string, then func()) string {
	defer from.Close()
	var all strings.Builder
	for lines := bufio.NewScanner(from); lines.Scan(); {
		all.WriteString(lines.Text() + "\n")
		if strings.Contains(lines.Text(), moment) {
			then()
		}
	}
	return all.String()
}
