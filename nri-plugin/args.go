// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
)

// What the program was called for.
const (
	cmdServe   = "serve"
	cmdStatus  = "status"
	cmdReady   = "ready"
	cmdLive    = "live"
	cmdDoctor  = "doctor"
	cmdVersion = "version"
	cmdHelp    = "help"
)

// command is a parsed command line.
type command struct {
	name   string
	json   bool                // status, or the doctor's findings, as JSON
	yaml   bool                // status as YAML
	limit  int                 // of devices, for the doctor; 0 is none
	rest   []string            // after the name of a command that looks into a pod
	getenv func(string) string // the environment, with the flags over it
}

const usage = `tailscale-nri gives annotated pods of this node a tailnet node each.
  tailscale-nri [flags]          serve, until SIGTERM; links and identities stay
  tailscale-nri status           show the nodes that a process serves; -json or -yaml
  tailscale-nri ready|live       registered, or standing by? does it answer? 1, and why, if not
  tailscale-nri doctor           check this host and its way to the tailnet; -json, -device-limit N
  tailscale-nri ping|whois|netcheck|bugreport|capture POD   look into its node; ping -help …
Flags:
  -nri-socket, -state-dir, -status-socket PATH: over NRI_SOCKET, TS_STATE_DIR, TS_STATUS_SOCKET
  -version              print versions and end

Environment, or files in TS_CONFIG_DIR (default):
`

// parseArgs reads the command line. Where help is asked for, it prints it.
func parseArgs(args []string, getenv func(string) string, stdout io.Writer) (command, error) {
	over := make(map[string]*string)
	c := command{name: cmdServe, getenv: func(key string) string {
		if v := over[key]; v != nil && *v != "" {
			return *v
		}
		return getenv(key)
	}}
	fs := newFlagSet()
	over[envNRISocket] = fs.String("nri-socket", "", "")
	over[envStateDir] = fs.String("state-dir", "", "")
	over[envStatusSocket] = fs.String("status-socket", "", "")
	showVersion := fs.Bool("version", false, "")
	fs.BoolVar(&c.json, "json", false, "")
	fs.BoolVar(&c.yaml, "yaml", false, "")
	fs.IntVar(&c.limit, "device-limit", 0, "")

	// The flags may stand before and after the command's name.
	err := fs.Parse(args)
	if err == nil && isPodTool(fs.Arg(0)) {
		c.name, c.rest = fs.Arg(0), fs.Args()[1:]
		return c, c.checkFlags()
	}
	if err == nil && slices.Contains([]string{cmdStatus, cmdReady, cmdLive, cmdDoctor}, fs.Arg(0)) {
		c.name = fs.Arg(0)
		err = fs.Parse(fs.Args()[1:])
	}
	switch {
	case errors.Is(err, flag.ErrHelp):
		c.name = cmdHelp
		fmt.Fprint(stdout, usage)
		printSettings(stdout)
		return c, nil
	case err != nil:
		return c, fmt.Errorf("%w (-help shows what there is)", err)
	case fs.NArg() > 0:
		return c, fmt.Errorf("unknown argument %q (-help shows what there is)", strings.Join(fs.Args(), " "))
	case *showVersion:
		c.name = cmdVersion
	}
	return c, c.checkFlags()
}

// checkFlags says which flag is another command's.
func (c command) checkFlags() error {
	switch {
	case c.yaml && c.name != cmdStatus, c.json && c.name != cmdStatus && c.name != cmdDoctor:
		return errors.New("-json and -yaml belong to the command status, and -json to doctor")
	case c.limit != 0 && c.name != cmdDoctor:
		return errors.New("-device-limit belongs to the command doctor")
	case c.limit < 0:
		return fmt.Errorf("-device-limit is %d: write how many devices this cluster may have", c.limit)
	case c.json && c.yaml:
		return errors.New("-json and -yaml are two answers: ask for one")
	}
	return nil
}

// newFlagSet makes one that leaves all printing to us.
func newFlagSet() *flag.FlagSet {
	fs := flag.NewFlagSet("tailscale-nri", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	return fs
}
