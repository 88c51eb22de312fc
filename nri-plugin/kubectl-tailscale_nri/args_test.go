// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestParseArgs(t *testing.T) {
	for line, want := range map[string]options{
		"status": {command: "status", format: "table", timeout: 20 * time.Second},
		"--context=a status --kubeconfig b -o wide -n team x y/z": {command: "status", format: "wide", namespace: "team",
			timeout: 20 * time.Second, kubectl: []string{"--context=a", "--kubeconfig=b"}, args: []string{"x", "y/z"}},
		"status -n team -A -l app=web --watch": {command: "status", format: "table", selector: "app=web", watch: true, timeout: 20 * time.Second},
		"status --insecure-skip-tls-verify --server https://x --timeout 3s": {command: "status", format: "table", timeout: 3 * time.Second,
			kubectl: []string{"--insecure-skip-tls-verify", "--server=https://x"}},
		"doctor --node n1 -v --device-limit 50 --agent-namespace kube-system": {command: "doctor", format: "table", node: "n1", verbose: true,
			limit: 50, timeout: time.Minute, agentNamespace: "kube-system"},
		"version --as me": {command: "version", timeout: 20 * time.Second, kubectl: []string{"--as=me"}},
		// All behind the pod is the tool's, but for what says which cluster.
		"-n team ping web -c 3 --context a -timeout 1s peer": {command: "ping", namespace: "team", kubectl: []string{"--context=a"},
			args: []string{"web", "-c", "3", "-timeout", "1s", "peer"}},
		"capture a/web -w - -- -n": {command: "capture", args: []string{"a/web", "-w", "-", "--", "-n"}},
		"whois web -h":             {command: "whois", args: []string{"web", "-h"}},
		"-h":                       {command: "help"},
		"status --help":            {command: "help", format: "table", timeout: 20 * time.Second},
		"ping -h":                  {command: "help"},
	} {
		got, err := parseArgs(strings.Fields(line))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got\n%+v, %v, want\n%+v", line, got, err, want)
		}
	}
	for line, want := range map[string]string{
		"":                       "see --help",
		"stats":                  `unknown command "stats"`,
		"status --context":       "--context needs a value",
		"status -n":              "-n needs a value",
		"status -x":              "-x",
		"status -o xml":          "xml",
		"status -l a=b web":      "two selections",
		"status --timeout 0s":    "--timeout is 0s",
		"doctor web":             `unknown argument "web"`,
		"doctor -o wide":         "wide",
		"version -w":             "-w",
		"ping":                   "of which pod?",
		"ping -c 3 web 10.0.0.1": "of which pod?",
	} {
		if _, err := parseArgs(strings.Fields(line)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", line, err, want)
		}
	}
}

// TestCaptureFile: a file is written here, and the agent writes to its output.
func TestCaptureFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a=b.pcap")
	for line, want := range map[string]string{
		"capture d/web -w " + file:         "capture d/web -w -",
		"capture d/web --w=" + file:        "capture d/web --w=-",
		"capture d/web -w=" + file + " -c": "capture d/web -w=- -c",
		"capture d/web -w -":               "capture d/web -w -",
		"capture d/web -w=-":               "capture d/web -w=-",
		"capture d/web -w":                 "capture d/web -w",
		"capture d/web":                    "capture d/web",
	} {
		os.Remove(file)
		args := strings.Fields(line)
		w, err := captureFile(args)
		if err != nil || strings.Join(args, " ") != want || (w != nil) != strings.Contains(line, file) {
			t.Fatalf("%q: %q, %v, %v", line, args, w, err)
		}
		if w == nil {
			continue
		}
		_, err = io.WriteString(w, "\x00\r\n")
		w.Close()
		if data, _ := os.ReadFile(file); err != nil || string(data) != "\x00\r\n" {
			t.Errorf("%q: the file holds %q, %v", line, data, err)
		}
	}
	if _, err := captureFile([]string{"-w", t.TempDir()}); err == nil {
		t.Error("a directory was opened as a file")
	}
}

func TestExplain(t *testing.T) {
	for said, want := range map[string]string{
		"": "",
		"E1129 23:29:18.665906   20358 memcache.go:381] \"x\" err=\"y\"\nThe connection to the server was refused\n": "The connection to the server was refused",
		"error: unable to upgrade connection: container not found (\"tailscale-nri\")\n":                             `unable to upgrade connection: container not found ("tailscale-nri")`,
		"Error from server (Forbidden): nodes is forbidden\n":                                                        "Error from server (Forbidden): nodes is forbidden",
		"tailscale-nri: no process answers\ncommand terminated with exit code 2\n":                                   "tailscale-nri: no process answers",
		"Warning: x\nError from server: error dialing backend: EOF\nThe connection\nThe connection\n":                "error dialing backend: EOF; The connection",
	} {
		if got := explain(said); got != want {
			t.Errorf("%q: %q, want %q", said, got, want)
		}
	}
	if !isForbidden(kubectlError{said: "Error from server (Forbidden): x", err: os.ErrClosed}) || isForbidden(os.ErrPermission) || isForbidden(nil) {
		t.Error("who lacks a right is not told from others")
	}
}
