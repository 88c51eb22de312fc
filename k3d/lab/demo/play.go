// SPDX-License-Identifier: BSD-3-Clause

package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"tailscale-nri/k3d/lab/scene"
)

// play is the scene with its pods.
type play struct {
	*scene.Scene
	screen         *Screen
	web, db, plain *scene.Pod
	reference      scene.Network // of a pod that was made before there was a plugin
	plainWas       scene.Network // of plain, at first
}

// acts in their order; each needs those before it.
var acts = []struct {
	title string
	act   func(*play, context.Context) error
}{
	{"A stock tailscaled joins the tailnet, the plugin registers with containerd", (*play).prepare},
	{"Two pods opt in, one does not", (*play).join},
	{"The peer fetches pages from the pods over the tailnet", (*play).pages},
	{"Pod to pod over the tailnet, all at the same time", (*play).podToPod},
	{"The pod that did not opt in, and the cluster's own network", (*play).cluster},
	{"The plugin is killed and started again, under traffic", (*play).restart},
	{"A pod with a wrong annotation", (*play).refusal},
	{"A pod is deleted", (*play).deletion},
}

// Config says on what the demo is shown, and where.
type Config struct {
	scene.Config
	// Screen shows what happens; nil is the standard output.
	Screen *Screen
}

// Run plays it all. It returns nil only if each thing was seen as expected. With keep, the lab stays up afterwards,
// unless ctx was ended; else nothing stays.
func Run(ctx context.Context, cfg Config, keep bool) error {
	if cfg.Screen == nil {
		cfg.Screen = NewScreen(os.Stdout)
	}
	cfg.Screen.Doing("building the lab")
	begin := time.Now()
	cfg.Note = cfg.Screen.Note
	built, err := scene.Open(ctx, cfg.Config)
	if err != nil {
		return err
	}
	cfg.Screen.Saw(time.Since(begin), "lab in %s: containerd, runc, CNI, in network namespaces of their own", built.Lab.Dir())
	cfg.Screen.Saw(0, "tailnet: %s", built.TailnetName())
	err = playAll(ctx, &play{Scene: built, screen: cfg.Screen})
	if err != nil {
		cfg.Screen.Failed(err)
		cfg.Screen.Text(tails(built))
		err = errors.New("not everything was as expected")
	}
	if keep && ctx.Err() == nil {
		cfg.Screen.Text(lookAround(built))
		return errors.Join(err, built.Lab.Close())
	}
	// What was begun is ended also after Ctrl-C.
	err = errors.Join(err, built.Close(context.WithoutCancel(ctx)))
	if err == nil {
		cfg.Screen.Text(fmt.Sprintf("\nAll of it was observed, in %.0f s. The lab is gone; KEEP=1 leaves it up.", time.Since(begin).Seconds()))
	}
	return err
}

func playAll(ctx context.Context, p *play) error {
	for i, a := range acts {
		p.screen.Act(i+1, a.title)
		if err := a.act(p, ctx); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// tailLines is how much of each log is shown after a failure.
const tailLines = 20

// tails are the ends of the logs that say most about a failure.
func tails(s *scene.Scene) string {
	var b strings.Builder
	for _, name := range []string{"plugin", "containerd"} {
		file := filepath.Join(s.Lab.Dir(), "log", name+".log")
		text, err := os.ReadFile(file)
		if err != nil {
			fmt.Fprintf(&b, "\n%v\n", err)
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		fmt.Fprintf(&b, "\nThe end of %s:\n", file)
		for _, line := range lines[max(0, len(lines)-tailLines):] {
			fmt.Fprintf(&b, "  %s\n", line)
		}
	}
	return b.String()
}

func lookAround(s *scene.Scene) string {
	var b strings.Builder
	b.WriteString("\nThe lab stays up. To look around:\n\n")
	for _, c := range s.LookAround() {
		fmt.Fprintf(&b, "  %s\n      # %s\n", c.Line, c.Shows)
	}
	b.WriteString("\nmake demo-down ends it.\n")
	return b.String()
}
