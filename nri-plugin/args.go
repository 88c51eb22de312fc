// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"

	"tailscale-nri/nri-plugin/internal/podtools"
	"tailscale-nri/nri-plugin/internal/settings"
	"tailscale-nri/nri-plugin/internal/status"
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
	json   bool                // the doctor's findings as JSON
	output string              // of status: one of status.Formats
	watch  bool                // status again and again
	pods   []string            // that status is to show, NAMESPACE/POD; none is all
	limit  int                 // of devices, for the doctor; 0 is none
	rest   []string            // after the name of a command that looks into a pod
	getenv func(string) string // the environment, with the flags over it
}

const usage = `tailscale-nri gives annotated pods of this host a tailnet node each.
  tailscale-nri [flags]          serve, until SIGTERM; links and identities stay
  tailscale-nri status [[NAMESPACE/]POD ...]   pods and their nodes; -o table|wide|json|yaml, -watch
                                 ends with 0: all Running, 1: not all, 2: nobody could be asked
  tailscale-nri ready | live     is it registered, or standing by? does it answer? 1 and why if not
  tailscale-nri doctor           check this host and its way to the tailnet; -json, -device-limit N
  tailscale-nri ping|whois|netcheck|bugreport|capture POD   look into its node; ping -help …
Flags: -version; -nri-socket, -state-dir and -status-socket PATH, over the variables
Environment, or files in TS_CONFIG_DIR (default):
`

// parseArgs reads the command line. It prints the help if that is asked for.
func parseArgs(args []string, getenv func(string) string, stdout io.Writer) (command, error) {
	over := make(map[string]*string)
	c := command{name: cmdServe, getenv: func(key string) string {
		if v := over[key]; v != nil && *v != "" {
			return *v
		}
		return getenv(key)
	}}
	fs := podtools.NewFlagSet()
	over[settings.NRISocket] = fs.String("nri-socket", "", "")
	over[settings.StateDir] = fs.String("state-dir", "", "")
	over[settings.StatusSocket] = fs.String("status-socket", "", "")
	showVersion := fs.Bool("version", false, "")
	fs.BoolVar(&c.json, "json", false, "")
	asYAML := fs.Bool("yaml", false, "")
	fs.StringVar(&c.output, "o", "", "")
	fs.BoolVar(&c.watch, "watch", false, "")
	fs.IntVar(&c.limit, "device-limit", 0, "")

	// The flags may stand before and after the command's name.
	err := fs.Parse(args)
	if err == nil && podtools.Is(fs.Arg(0)) {
		c.name, c.rest = fs.Arg(0), fs.Args()[1:]
		return c, c.checkFlags(*asYAML)
	}
	if err == nil && slices.Contains([]string{cmdStatus, cmdReady, cmdLive, cmdDoctor}, fs.Arg(0)) {
		c.name = fs.Arg(0)
		err = fs.Parse(fs.Args()[1:])
	}
	var pods []string
	for err == nil && c.name == cmdStatus && fs.NArg() > 0 {
		pods = append(pods, fs.Arg(0))
		err = fs.Parse(fs.Args()[1:])
	}
	switch {
	case errors.Is(err, flag.ErrHelp):
		c.name = cmdHelp
		fmt.Fprint(stdout, usage)
		settings.Print(stdout)
		return c, nil
	case err != nil:
		return c, fmt.Errorf("%w (see -help)", err)
	case fs.NArg() > 0:
		return c, fmt.Errorf("unknown argument %q (see -help)", strings.Join(fs.Args(), " "))
	case *showVersion:
		c.name = cmdVersion
	}
	if err := c.checkFlags(*asYAML); err != nil {
		return c, err
	}
	return c, c.show(pods, *asYAML)
}

// show reads what status is to show. -json and -yaml are older spellings of its -o.
func (c *command) show(pods []string, asYAML bool) error {
	for _, arg := range pods {
		pod, err := status.PodName(arg)
		if err != nil {
			return err
		}
		c.pods = append(c.pods, pod)
	}
	if c.name == cmdStatus && c.json {
		c.output, c.json = status.JSON, false
	}
	if asYAML {
		c.output = status.YAML
	}
	if c.output == "" {
		return nil
	}
	return status.CheckFormat(c.output)
}

// checkFlags returns an error for a flag that belongs to another command.
func (c *command) checkFlags(asYAML bool) error {
	switch {
	case (asYAML || c.output != "" || c.watch) && c.name != cmdStatus, c.json && c.name != cmdStatus && c.name != cmdDoctor:
		return errors.New("-o, -watch, -json and -yaml belong to the command status, and -json to doctor")
	case c.limit != 0 && c.name != cmdDoctor:
		return errors.New("-device-limit belongs to the command doctor")
	case c.limit < 0:
		return fmt.Errorf("-device-limit is %d: write how many devices this cluster may have", c.limit)
	case c.json && asYAML, c.output != "" && (c.json || asYAML):
		return errors.New("-o, -json and -yaml each name a format: ask for one")
	}
	return nil
}
