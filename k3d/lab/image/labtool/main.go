// SPDX-License-Identifier: BSD-3-Clause

// Command labtool is all that the lab's pods run: one static binary that serves and asks, for the tests and the demo
// to see what passes through the tailnet. It trusts its input, has no TLS, and does not measure throughput: iperf3 does.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"tailscale-nri/k3d/lab/internal/wait"
)

const usage = `labtool COMMAND [FLAGS] [ARGUMENT]
  all                      serve and echo on their ports, until a signal comes
  serve [ADDR]             HTTP on ADDR (:8080): who asks whom, and the interfaces' addresses, as JSON
  whois [ADDR]             HTTP on ADDR (:8082): which tailnet node asks, as the pod's own node tells it through the socket
                           in /var/run/tailscale, as JSON
  echo [ADDR]              TCP and UDP echo on ADDR (:7)
  get [-timeout D] [-retry D] URL
                           HTTP GET; prints the body. With -retry, again that often until one is answered
  stream [-every D] [-for D] ADDR
                           one TCP connection to an echo: a line for each answer, exit 1 when it breaks
  rr [-udp] [-size N] [-for D] ADDR
                           N bytes to an echo and back, again and again; prints how many answers came, how many did not,
                           and the time that they took, as JSON
  proxy [ADDR]             HTTP proxy on ADDR (:3128) that wants the user and password of PROXY_AUTH (user:password) and
                           says whom it was asked for
  ping [-count N] [-size N] [-timeout D] ADDR
                           ICMP echo; a line for each answer, exit 1 when one is missing
  lookup NAME              the addresses that the resolver has for NAME
  cat FILE                 what FILE holds
  sleep [DURATION]         until the time is over or a signal comes
`

// options are the flags of all commands; each reads its own.
type options struct {
	timeout, every, span time.Duration
	retry                time.Duration
	count, size          int
	datagrams            bool
	out                  io.Writer
}

// command runs until it is done or ctx is.
type command struct {
	run        func(ctx context.Context, opt options, arg string) error
	defaultArg string // "" where there is none
}

const servePort, echoPort = ":8080", ":7"

var commands = map[string]command{
	"all":    {all, " "},
	"serve":  {serve, servePort},
	"whois":  {whois, ":8082"},
	"echo":   {echo, echoPort},
	"get":    {get, ""},
	"stream": {stream, ""},
	"rr":     {rr, ""},
	"proxy":  {proxy, ":3128"},
	"ping":   {ping, ""},
	"lookup": {lookup, ""},
	"cat":    {cat, ""},
	"sleep":  {sleep, "8760h"},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "labtool:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 || commands[args[0]].run == nil {
		return fmt.Errorf("no such command\n%s", usage)
	}
	cmd := commands[args[0]]
	opt := options{out: os.Stdout}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.DurationVar(&opt.timeout, "timeout", 5*time.Second, "how long to wait for an answer")
	flags.DurationVar(&opt.every, "every", 100*time.Millisecond, "pause between two messages")
	flags.DurationVar(&opt.span, "for", 0, "how long to go on; 0 means until a signal comes")
	flags.DurationVar(&opt.retry, "retry", 0, "how long to wait for one of several tries; 0 means that there is one")
	flags.IntVar(&opt.count, "count", 1, "number of messages")
	flags.IntVar(&opt.size, "size", 56, "payload in bytes")
	flags.BoolVar(&opt.datagrams, "udp", false, "UDP in place of TCP")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	arg := cmp.Or(flags.Arg(0), cmd.defaultArg)
	if arg == "" {
		return fmt.Errorf("%s: argument missing\n%s", args[0], usage)
	}
	return cmd.run(ctx, opt, arg)
}

// all serves everything on the usual ports.
func all(ctx context.Context, opt options, _ string) error {
	servers, ctx := errgroup.WithContext(ctx)
	servers.Go(func() error { return serve(ctx, opt, servePort) })
	servers.Go(func() error { return echo(ctx, opt, echoPort) })
	return servers.Wait()
}

func sleep(ctx context.Context, _ options, arg string) error {
	d, err := time.ParseDuration(arg)
	if err != nil {
		return err
	}
	_ = wait.Pause(ctx, d) // a signal is not a failure
	return nil
}
