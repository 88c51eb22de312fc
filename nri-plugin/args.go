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
	cmdVersion = "version"
	cmdHelp    = "help"
)

// command is a parsed command line.
type command struct {
	name   string
	json   bool                // status as JSON
	yaml   bool                // status as YAML
	getenv func(string) string // the environment, with the flags over it
}

const usage = `tailscale-nri gives annotated pods of this node a tailnet node each.

  tailscale-nri [flags]          serve, until SIGTERM; links and identities stay
  tailscale-nri status           show the nodes that it serves, -json or -yaml for machines
  tailscale-nri ready            is it registered with the runtime, or standing by?
  tailscale-nri live             does it answer? Both end with 1 and say why if not

Flags:
  -nri-socket PATH      containerd's NRI socket, in place of NRI_SOCKET
  -state-dir PATH       identities of the pods' nodes, in place of TS_STATE_DIR
  -status-socket PATH   where the status is served, in place of TS_STATUS_SOCKET
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

	// The flags may stand before and after the command's name.
	err := fs.Parse(args)
	if err == nil && slices.Contains([]string{cmdStatus, cmdReady, cmdLive}, fs.Arg(0)) {
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
	case (c.json || c.yaml) && c.name != cmdStatus:
		return c, errors.New("-json and -yaml belong to the command status")
	case c.json && c.yaml:
		return c, errors.New("-json and -yaml are two answers: ask for one")
	case *showVersion:
		c.name = cmdVersion
	}
	return c, nil
}

// newFlagSet makes one that leaves all printing to us.
func newFlagSet() *flag.FlagSet {
	fs := flag.NewFlagSet("tailscale-nri", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	return fs
}
