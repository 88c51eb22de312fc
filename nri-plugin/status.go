// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"sigs.k8s.io/yaml"

	"tailscale-nri/engine"
)

// askWarnings is what to ask for the pods that run without a node.
const askWarnings = "warnings"

// statusServer answers on a unix socket: GET /status with the engine's nodes,
// GET /warnings with a line for each pod that runs without one and should not, GET /runtime with a runtimeInfo, GET /ready and GET /live with 200 or 503 and a line that says why,
// and /v1/pods/ as [engine.Engine.PodAPI] does.
type statusServer struct {
	health *health
	ln     net.Listener
}

// listenStatus opens the status socket, for root alone. A socket that an
// earlier process left behind is replaced; one that somebody answers on means
// that a second process would serve the same pods, so that is an error.
func listenStatus(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("creating the directory of %s: %w", envStatusSocket, err)
	}
	if err := removeDeadSocket(ctx, path); err != nil {
		return nil, err
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("opening the status socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, fmt.Errorf("protecting the status socket: %w", err)
	}
	return ln, nil
}

// removeDeadSocket removes a socket that nobody answers on, and nothing else.
//
// A process that was killed takes connections until the kernel has come to
// that socket, but answers none: it is waited for.
func removeDeadSocket(ctx context.Context, path string) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("looking at the status socket: %w", err)
	case fi.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is %q: that is no socket but something else: give it a path of its own", envStatusSocket, path)
	}
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	for {
		_, _, err := ask(ctx, path, cmdStatus)
		switch {
		case absent(err):
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("replacing the status socket: %w", err)
			}
			return nil
		case err == nil || ctx.Err() != nil:
			return fmt.Errorf("another tailscale-nri answers on %s: end it first", path)
		}
		sleep(ctx, 5*time.Millisecond)
	}
}

// Run serves until ctx is done, then removes the socket and returns nil.
func (s *statusServer) Run(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		nodes := append([]engine.NodeStatus{}, s.health.status()...) // "[]" and not "null"
		// An error here is the reader's who went away.
		_ = json.NewEncoder(w).Encode(nodes)
	})
	mux.HandleFunc("GET /"+askWarnings, func(w http.ResponseWriter, _ *http.Request) {
		answerProbe(w, true, strings.Join(s.health.warnings(), "\n"))
	})
	mux.HandleFunc("GET /"+askRuntime, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s.health.registeredWith())
	})
	mux.HandleFunc("GET /"+cmdReady, func(w http.ResponseWriter, _ *http.Request) {
		ok, text := s.health.ready()
		answerProbe(w, ok, text)
	})
	mux.HandleFunc("GET /"+cmdLive, func(w http.ResponseWriter, r *http.Request) {
		if err := s.health.live(r.Context()); err != nil {
			answerProbe(w, false, "not live: "+oneLine(err))
			return
		}
		answerProbe(w, true, "live")
	})
	s.health.pods.register(mux, s.health.ready)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	defer context.AfterFunc(ctx, func() { srv.Close() })()
	if err := srv.Serve(s.ln); ctx.Err() == nil {
		return fmt.Errorf("serving the status: %w", err)
	}
	return nil
}

// showStatus asks the process on this node and prints what it says, as a table
// or as cmd wants it. Below the table is what else there is to know.
func showStatus(ctx context.Context, socket string, cmd command, w io.Writer) error {
	code, body, err := fetch(ctx, socket, cmdStatus)
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("asking for the status on %s: it answered %d", socket, code)
	}
	if err == nil && cmd.yaml {
		body, err = yaml.JSONToYAML(body)
	}
	if err != nil {
		return err
	}
	if cmd.json || cmd.yaml {
		_, err := w.Write(body)
		return err
	}
	var nodes []engine.NodeStatus
	if err := json.Unmarshal(body, &nodes); err != nil {
		return fmt.Errorf("reading the status: %w", err)
	}
	if err := printStatus(w, nodes, time.Now()); err != nil {
		return err
	}
	return showRest(ctx, socket, w)
}

// showRest prints why the process is not ready, if it is not, and what it warns of.
func showRest(ctx context.Context, socket string, w io.Writer) error {
	_, text, err := fetch(ctx, socket, cmdReady)
	if err != nil {
		return err
	}
	if string(text) != readyText {
		fmt.Fprintf(w, "\n%s\n", text)
	}
	// A process of an earlier version has none to say.
	if code, text, err := fetch(ctx, socket, askWarnings); err == nil && code == http.StatusOK && len(text) > 0 {
		fmt.Fprintf(w, "\n%s\n", text)
	}
	return nil
}

// statusPatience is how long a process may take to say its status.
const statusPatience = 10 * time.Second

// fetch is ask for somebody who is to be told what to do about an error.
func fetch(ctx context.Context, socket, what string) (code int, body []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	code, body, err = ask(ctx, socket, what)
	switch {
	case absent(err):
		err = fmt.Errorf("no process answers on %s: start one, or set %s to its socket", socket, envStatusSocket)
	case err != nil:
		err = fmt.Errorf("asking for /%s on %s: %w", what, socket, err)
	}
	return code, body, err
}

// ask asks the process on socket for one of the things that a statusServer
// answers.
func ask(ctx context.Context, socket, what string) (code int, body []byte, err error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://tailscale-nri/"+what, nil)
	if err != nil {
		return 0, nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// printStatus writes one line per node, by namespace and pod.
func printStatus(w io.Writer, nodes []engine.NodeStatus, now time.Time) error {
	slices.SortFunc(nodes, func(a, b engine.NodeStatus) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.SandboxID, b.SandboxID))
	})
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "POD\tNAME\tSTATE\tSINCE\tREADY IN\tADDRESSES\tREASON")
	for _, n := range nodes {
		fmt.Fprintf(tw, "%s/%s\t%s\t%s\t%s\t%s\t%s\t%s\n", n.Namespace, n.Pod, nameOf(n), n.State,
			age(n.Since, now), readyIn(n.ReadyIn), addresses(n.Addresses), cmp.Or(n.Reason, "-"))
	}
	return tw.Flush()
}

// nameOf is the node's name in the tailnet, or the one that it wishes for.
func nameOf(n engine.NodeStatus) string {
	given, _, _ := strings.Cut(n.DNSName, ".")
	return cmp.Or(given, n.Hostname)
}

// age is the time since t in whole seconds.
func age(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return now.Sub(t).Round(time.Second).String()
}

func readyIn(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return d.Round(time.Millisecond).String()
}

func addresses(list []netip.Addr) string {
	text := make([]string, len(list))
	for i, a := range list {
		text[i] = a.String()
	}
	return cmp.Or(strings.Join(text, ","), "-")
}
