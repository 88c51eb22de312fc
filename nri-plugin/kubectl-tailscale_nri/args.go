// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"tailscale-nri/nri-plugin/internal/status"
)

// What can be asked for.
const (
	cmdStatus  = "status"
	cmdDoctor  = "doctor"
	cmdVersion = "version"
	cmdHelp    = "help"
)

// tools are the agent's commands about one pod.
var tools = []string{"ping", "whois", "netcheck", "bugreport", toolCapture}

const toolCapture = "capture"

const usage = `kubectl tailscale-nri asks the agents of tailscale-nri, one on each host.
  kubectl tailscale-nri status [NAMESPACE/POD...]   the pods' tailnet nodes, on all hosts
      -o table|wide|json|yaml; -w, --watch; -n NAMESPACE; -l SELECTOR of pods
  kubectl tailscale-nri doctor                      what is wrong on the hosts, with remedies
      --node HOST; -v for all findings, also the good ones; -o table|json; --device-limit N
  kubectl tailscale-nri version                     of this command and of the agents
  kubectl tailscale-nri TOOL POD [ARGUMENT...]      ping, whois, netcheck, bugreport or capture,
      by the agent of the pod's host, with its arguments and its output
For all:
  --agent-namespace NAMESPACE   where the agents are, if you may not list pods in all namespaces
  --timeout 20s                 for the answer of a host; of doctor 1m
  --context, --kubeconfig, -n, --as and kubectl's other flags for a cluster and a user
A POD without a namespace is in that of -n, or of the current context.
KUBECTL names another kubectl. Exit code: 0 all is well, 1 something is not, 2 not all could be asked.
`

// options are a parsed command line.
type options struct {
	command        string
	kubectl        []string // flags for each call of kubectl
	namespace      string   // "" where none is given
	agentNamespace string
	selector       string
	node           string
	format         string
	limit          int // of devices, for the doctor
	timeout        time.Duration
	watch          bool
	verbose        bool
	args           []string // pods; or a tool's pod and arguments
}

// kubectlFlags are those of kubectl that say which cluster, and as whom, but for -s:
// of a capture that is the size. The value says whether they take one.
var kubectlFlags = map[string]bool{
	"--as": true, "--as-group": true, "--as-uid": true, "--as-user-extra": true, "--cache-dir": true,
	"--certificate-authority": true, "--client-certificate": true, "--client-key": true, "--cluster": true,
	"--context": true, "--disable-compression": false, "--insecure-skip-tls-verify": false, "--kubeconfig": true,
	"--kuberc": true, "--password": true, "--request-timeout": true, "--server": true, "--tls-server-name": true,
	"--token": true, "--user": true, "--username": true,
}

// parseArgs reads the command line.
func parseArgs(args []string) (options, error) {
	o, rest, err := takeKubectlFlags(args)
	if err != nil {
		return o, err
	}
	if len(rest) == 0 {
		return o, errors.New("no command is given (see --help)")
	}
	if slices.Contains([]string{"-h", "-help", "--help"}, rest[0]) {
		rest[0] = cmdHelp
	}
	o.command, rest = rest[0], rest[1:]
	switch {
	case o.command == cmdHelp:
		return o, nil
	case slices.Contains(tools, o.command):
		return parseTool(o, rest)
	case !slices.Contains([]string{cmdStatus, cmdDoctor, cmdVersion}, o.command):
		return o, fmt.Errorf("unknown command %q (see --help)", o.command)
	}
	fs := flags(&o)
	for len(rest) > 0 {
		if err := fs.Parse(rest); errors.Is(err, flag.ErrHelp) {
			o.command = cmdHelp
			return o, nil
		} else if err != nil {
			return o, fmt.Errorf("%w (see --help)", err)
		}
		if rest = fs.Args(); len(rest) > 0 {
			o.args, rest = append(o.args, rest[0]), rest[1:]
		}
	}
	return o, o.check()
}

// clusterFlag is a flag that says which cluster, or where in it, as whom.
type clusterFlag struct {
	name, value string
	bare        bool // it has no value
}

// set notes the flag. Those for kubectl are joined to their values, which begin
// with a dash where they like.
func (f clusterFlag) set(o *options) {
	switch {
	case f.name == "--namespace":
		o.namespace = f.value
	case f.name == "--agent-namespace":
		o.agentNamespace = f.value
	case f.bare:
		o.kubectl = append(o.kubectl, f.name)
	default:
		o.kubectl = append(o.kubectl, f.name+"="+f.value)
	}
}

// cutClusterFlag cuts such a flag from the beginning of args. It is nil where
// another argument stands there.
func cutClusterFlag(args []string) (f *clusterFlag, rest []string, err error) {
	name, value, joined := strings.Cut(args[0], "=")
	if name == "-n" {
		name = "--namespace"
	}
	takes, known := kubectlFlags[name]
	if name == "--namespace" || name == "--agent-namespace" {
		takes, known = true, true
	}
	switch {
	case !known:
		return nil, args, nil
	case joined || !takes:
		return &clusterFlag{name, value, !joined}, args[1:], nil
	case len(args) == 1:
		return nil, nil, fmt.Errorf("%s needs a value", args[0])
	}
	return &clusterFlag{name, args[1], false}, args[2:], nil
}

// takeKubectlFlags takes kubectl's flags out of args, wherever they stand before --.
func takeKubectlFlags(args []string) (o options, rest []string, err error) {
	for len(args) > 0 && args[0] != "--" {
		var f *clusterFlag
		if f, args, err = cutClusterFlag(args); err != nil {
			return o, nil, err
		}
		if f == nil {
			rest, args = append(rest, args[0]), args[1:]
			continue
		}
		f.set(&o)
	}
	return o, append(rest, args...), nil
}

// flags returns the command's flags, whose values are written to o.
func flags(o *options) *flag.FlagSet {
	fs := flag.NewFlagSet(o.command, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	patience := 20 * time.Second
	switch o.command {
	case cmdStatus:
		all := func(string) error { o.namespace = ""; return nil }
		fs.BoolFunc("A", "", all)
		fs.BoolFunc("all-namespaces", "", all)
		fs.StringVar(&o.selector, "l", "", "")
		fs.StringVar(&o.selector, "selector", "", "")
		fs.BoolVar(&o.watch, "w", false, "")
		fs.BoolVar(&o.watch, "watch", false, "")
	case cmdDoctor:
		fs.StringVar(&o.node, "node", "", "")
		fs.BoolVar(&o.verbose, "v", false, "")
		fs.IntVar(&o.limit, "device-limit", 0, "")
		patience = time.Minute
	}
	if o.command != cmdVersion {
		fs.StringVar(&o.format, "o", status.Table, "")
		fs.StringVar(&o.format, "output", status.Table, "")
	}
	fs.DurationVar(&o.timeout, "timeout", patience, "")
	return fs
}

// check says what of a command line cannot be done.
func (o options) check() error {
	switch {
	case o.timeout <= 0:
		return fmt.Errorf("--timeout is %v: write how long a host may take, 20s for instance", o.timeout)
	case o.command != cmdStatus && len(o.args) > 0:
		return fmt.Errorf("unknown argument %q (see --help)", strings.Join(o.args, " "))
	case o.command == cmdStatus && o.selector != "" && len(o.args) > 0:
		return errors.New("-l and names of pods are two selections: keep one")
	case o.command == cmdStatus:
		return status.CheckFormat(o.format)
	case o.command == cmdDoctor && o.format != status.Table && o.format != status.JSON:
		return fmt.Errorf("-o is %q: the doctor prints its findings as %s or %s", o.format, status.Table, status.JSON)
	}
	return nil
}

// parseTool leaves all behind the pod to the tool.
func parseTool(o options, rest []string) (options, error) {
	if len(rest) > 0 && (slices.Contains([]string{"-h", "-help", "--help"}, rest[0])) {
		o.command = cmdHelp
		return o, nil
	}
	if len(rest) == 0 || strings.HasPrefix(rest[0], "-") {
		return o, fmt.Errorf("of which pod? It stands first: kubectl tailscale-nri %s POD [ARGUMENT...]; -help behind the pod names the arguments", o.command)
	}
	o.args = rest
	return o, nil
}
