// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// kubectlScript stands in for kubectl, of a cluster whose pod web runs on n1, where
// two agents are and one of them serves. A tool says bytes that a terminal would
// change, and ends with a code of its own. e2e has the real one.
const kubectlScript = `#!/bin/sh
agent() {
	echo '{"metadata":{"namespace":"ns","name":"'$1'"},"spec":{"nodeName":"n1","containers":[{"name":"tailscale-nri","image":"i"}]},
		"status":{"phase":"Running","containerStatuses":[{"name":"tailscale-nri","state":{"running":{}}}]}}'
}
case "$*" in
*"get -o json pods web"*) echo '{"kind":"Pod","metadata":{"namespace":"team","name":"web"},"spec":{"nodeName":"n1"}}' ;;
*"get -o json pods none"*) echo 'Error from server (NotFound): pods "none" not found' >&2; exit 1 ;;
*"get -o json pods -l app.kubernetes.io/name=tailscale-nri --field-selector=spec.nodeName=n1 -A"*)
	echo '{"kind":"List","items":['; agent waits; echo ,; agent serves; echo ']}' ;;
*"exec -n ns waits -c tailscale-nri -- /tailscale-nri status -o json")
	echo '{"apiVersion":"tailscale-nri/v1","ready":true,"role":"standby","message":"standing by","nodes":[]}' ;;
*"exec -n ns serves -c tailscale-nri -- /tailscale-nri status -o json")
	echo '{"apiVersion":"tailscale-nri/v1","ready":true,"role":"serving","nodes":[]}' ;;
*) printf 'a\000\r\n\377'; echo "$*" >&2; exit 7 ;;
esac
`

// TestTool: a tool's bytes and its exit code are the command's.
func TestTool(t *testing.T) {
	program := filepath.Join(t.TempDir(), "kubectl")
	if err := os.WriteFile(program, []byte(kubectlScript), 0o700); err != nil {
		t.Fatal(err)
	}
	env := func(key string) string { return map[string]string{envKubectl: program}[key] }
	call := func(line string) (out, said string, code int) {
		var stdout, stderr strings.Builder
		code = run(context.Background(), env, strings.Fields(line), streams{out: &stdout, err: &stderr})
		return stdout.String(), stderr.String(), code
	}
	const raw = "a\x00\r\n\xff"
	for line, want := range map[string]string{
		"ping web -c 3 peer":                   "exec -n ns serves -c tailscale-nri -- /tailscale-nri ping team/web -c 3 peer",
		"--context x capture -n team web -s 0": "--context=x exec -n ns serves -c tailscale-nri -- /tailscale-nri capture team/web -s 0",
		"whois team/web 100.64.0.1":            "", // team/web is asked for as web of a namespace
	} {
		out, said, code := call(line)
		if out != raw || code != 7 || !strings.HasSuffix(strings.TrimSpace(said), want) {
			t.Errorf("%s: %q, %q, %d", line, out, said, code)
		}
	}
	file := filepath.Join(t.TempDir(), "web.pcap")
	if out, said, code := call("capture web -w " + file); out != "" || code != 7 || !strings.Contains(said, "capture team/web -w -") {
		t.Errorf("into a file: %q, %q, %d", out, said, code)
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != raw {
		t.Errorf("the file holds %q, %v", data, err)
	}
	if out, said, code := call("ping none peer"); out != "" || code != 2 || !strings.Contains(said, `pods "none" not found`) {
		t.Errorf("a pod that is not there: %q, %q, %d", out, said, code)
	}
	env = func(string) string { return filepath.Join(t.TempDir(), "none") }
	if _, said, code := call("ping web peer"); code != 2 || !strings.Contains(said, "finding kubectl") {
		t.Errorf("without kubectl: %q, %d", said, code)
	}
}

// TestAsk: an agent whose host is lost, or whose answer breaks off, is said to be that.
func TestAsk(t *testing.T) {
	for script, want := range map[string][]string{
		"exec sleep 60": {"no answer within 200ms"},
		`echo '{"apiVersion":'; echo 'error: stream closed' >&2; exit 1`:        {"stream closed", "reading the status"},
		`echo '{"apiVersion":"tailscale-nri/v2","nodes":{}}'`:                   {`apiVersion "tailscale-nri/v2"`},
		`echo 'flag provided but not defined: -o' >&2; exit 2`:                  {"older than this command", "i:1"},
		`echo 'command terminated with exit code 1' >&2; echo '[]'; exit 1`:     {"reading the status"},
		`echo '{"apiVersion":"tailscale-nri/v1","nodes":[],"later":1}'; exit 1`: nil,
	} {
		program := filepath.Join(t.TempDir(), "kubectl")
		if err := os.WriteFile(program, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		timeout := time.Minute
		if strings.Contains(script, "sleep") {
			timeout = 200 * time.Millisecond
		}
		err := kubectl{program: program}.ask(t.Context(), agentOf(t, "a", `{"running":{}}`), timeout).err
		if (err == nil) != (want == nil) {
			t.Errorf("%s: got %v", script, err)
		}
		for _, text := range want {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: got %v, want %q", script, err, text)
			}
		}
	}
}
