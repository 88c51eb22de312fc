// SPDX-License-Identifier: BSD-3-Clause

package podtools

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"tailscale.com/client/local"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/config"
	"tailscale-nri/nri-plugin/internal/statussocket"
)

// The commands that look into one pod's node run next to the process that serves it,
// as root of the same container, and ask it on the status socket. They read, and
// change nothing.

const (
	cmdPing      = "ping"
	cmdWhois     = "whois"
	cmdNetcheck  = "netcheck"
	cmdBugreport = "bugreport"
	cmdCapture   = "capture"
)

// podTool is one of the commands.
type podTool struct {
	usage string // what -help prints
	// flags adds the command's own, and returns what runs it once they are parsed.
	flags func(*flag.FlagSet) func(context.Context, *podClient, toolIO) error
	args  int // how many there are after the pod
}

// toolIO has a command's arguments, output and environment.
type toolIO struct {
	args   []string // after the pod
	stdout io.Writer
	stderr io.Writer
	getenv func(string) string
}

// all are the commands, by name.
func all() map[string]podTool {
	return map[string]podTool{
		cmdPing:      {usagePing, pingFlags, 1},
		cmdWhois:     {usageWhois, whoisFlags, 1},
		cmdNetcheck:  {usageNetcheck, netcheckFlags, 0},
		cmdBugreport: {usageBugreport, bugreportFlags, 0},
		cmdCapture:   {usageCapture, captureFlags, 0},
	}
}

// Is reports whether a command of that name is here.
func Is(name string) bool {
	_, ok := all()[name]
	return ok
}

// noAnswer is the error of a command that could ask, and got no answer or a negative
// one: it ends with 1.
type noAnswer struct{ error }

func (e noAnswer) Unwrap() error { return e.error }

// Run runs the command of that name with the rest of the command line. Its error is a noAnswer or a statussocket.CannotAsk.
func Run(ctx context.Context, name string, rest []string, getenv func(string) string, stdout, stderr io.Writer) error {
	tool := all()[name]
	fs := NewFlagSet()
	socket := fs.String("status-socket", "", "")
	act := tool.flags(fs)
	args, err := parseMixed(fs, rest)
	switch {
	case errors.Is(err, flag.ErrHelp):
		_, err := fmt.Fprint(stdout, tool.usage)
		return err
	case err != nil:
		return statussocket.CannotAsk{Err: fmt.Errorf("%w (see %s -help)", err, name)}
	case len(args) != 1+tool.args:
		first, _, _ := strings.Cut(tool.usage, "\n")
		return statussocket.CannotAsk{Err: fmt.Errorf("%s takes %d arguments and got %d: %s", name, 1+tool.args, len(args), first)}
	}
	if *socket == "" {
		if *socket, err = config.StatusSocket(getenv); err != nil {
			return statussocket.CannotAsk{Err: err}
		}
	}
	c, err := newPodClient(*socket, args[0])
	if err == nil {
		if name != cmdCapture { // which has -d, and an eye on its reader
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, toolTime)
			defer cancel()
		}
		err = attended(ctx, toolLast, func() error { return act(ctx, c, toolIO{args[1:], stdout, stderr, getenv}) })
	}
	if err != nil && !errors.As(err, new(noAnswer)) {
		return statussocket.CannotAsk{Err: err}
	}
	return err
}

const (
	// toolTime ends a command that was forgotten. One whose kubectl exec is
	// cut off goes on, and its output is a pipe that is held and not read.
	toolTime = time.Hour
	// toolLast is for how long the last of the output may take to be written.
	toolLast = 5 * time.Second
)

// attended calls act, which ends with ctx, unless it waits for who reads its output:
// then it is left to the end of this process.
func attended(ctx context.Context, last time.Duration, act func() error) error {
	ended := make(chan error, 1)
	go func() { ended <- act() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-ended:
		return err
	case <-time.After(last):
		return noAnswer{fmt.Errorf("ended, and nobody has read the output for %v", last)}
	}
}

// parseMixed parses flags that may stand before, between and after the arguments,
// which it returns.
func parseMixed(fs *flag.FlagSet, rest []string) (args []string, err error) {
	for {
		if err := fs.Parse(rest); err != nil {
			return nil, err
		}
		if fs.NArg() == 0 {
			return args, nil
		}
		// What follows "--" is not a flag.
		if at := len(rest) - fs.NArg(); at > 0 && rest[at-1] == "--" {
			return append(args, fs.Args()...), nil
		}
		args, rest = append(args, fs.Arg(0)), fs.Args()[1:]
	}
}

// podClient asks the serving process about one pod. Its local.Client is one of the
// LocalAPI of the pod's node.
type podClient struct {
	local.Client
	socket string
	path   string // of the pod, on the socket
	name   string // NAMESPACE/POD
}

// newPodClient returns a client for a pod written NAMESPACE/POD, or POD for one of
// the namespace default.
func newPodClient(socket, pod string) (*podClient, error) {
	namespace, name, ok := strings.Cut(pod, "/")
	if !ok {
		namespace, name = "default", pod
	}
	if !isPodName(namespace) || !isPodName(name) {
		return nil, fmt.Errorf("%.300q is not the name of a pod: write NAMESPACE/POD, or POD for one of the namespace default", pod)
	}
	c := &podClient{socket: socket, path: strings.TrimPrefix(engine.PodAPIPrefix, "/") + namespace + "/" + name, name: namespace + "/" + name}
	c.OmitAuth = true
	next := func(patience time.Duration) http.RoundTripper {
		return &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", socket)
			},
			ResponseHeaderTimeout: patience,
		}
	}
	c.Transport = podTransport{"/" + c.path, next(localAPIPatience), next(0)}
	return c, nil
}

// localAPIPatience is how long a node may take to answer, and to wait for its turn
// to do so.
const localAPIPatience = 15 * time.Second

// isPodName reports whether the text can be the name of a pod or of a namespace, and
// so be part of a path as it is.
func isPodName(s string) bool {
	return s != "" && len(s) <= 253 && s[0] != '.' && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-.") == ""
}

// podTransport leads the requests of a LocalAPI's client to that of a pod's node.
type podTransport struct {
	prefix string
	next   http.RoundTripper // which does not wait for a node that hangs
	ping   http.RoundTripper // which waits as long as its caller does
}

func (t podTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	next := t.next
	if strings.HasSuffix(r.URL.Path, "/ping") {
		next = t.ping
	}
	r = r.Clone(r.Context())
	r.URL.Path = t.prefix + r.URL.Path
	res, err := next.RoundTrip(r)
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() && r.Context().Err() == nil {
		err = fmt.Errorf("the node does not answer, it may hang: %w", err)
	}
	return res, err
}

// view asks for the engine's view of the pod.
func (c *podClient) view(ctx context.Context) (v engine.PodView, err error) {
	return v, c.get(ctx, "", &v)
}

// running is view with an error if the node is not up.
func (c *podClient) running(ctx context.Context) (engine.PodView, error) {
	v, err := c.view(ctx)
	if err == nil && v.State != engine.Running {
		err = fmt.Errorf("the node of %s is %s: %s", c.name, v.State, cmp.Or(v.Reason, "its sandbox has ended"))
	}
	return v, err
}

// get asks for what is below the pod's path.
func (c *podClient) get(ctx context.Context, below string, into any) error {
	code, body, err := statussocket.Fetch(ctx, c.socket, c.path+below)
	switch {
	case err != nil:
		return err
	case code == http.StatusNotFound && !strings.HasPrefix(string(body), "no pod "):
		return errors.New("the serving process has another version, without this command: use its image's own")
	case code != http.StatusOK:
		return errors.New(strings.TrimPrefix(strings.TrimSpace(string(body)), "tailscale-nri: "))
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("reading the answer about %s: %w", c.name, err)
	}
	return nil
}

// printJSON writes a value as JSON.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// formatFlag adds -json and -o json, and returns whether either was given.
func formatFlag(fs *flag.FlagSet) (asJSON func() (bool, error)) {
	plain := fs.Bool("json", false, "")
	format := fs.String("o", "", "")
	return func() (bool, error) {
		if *format != "" && *format != "json" {
			return false, fmt.Errorf("-o %s: there is json, and without -o a text", *format)
		}
		return *plain || *format != "", nil
	}
}

// NewFlagSet returns a flag set that prints nothing itself.
func NewFlagSet() *flag.FlagSet {
	fs := flag.NewFlagSet("tailscale-nri", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	return fs
}
