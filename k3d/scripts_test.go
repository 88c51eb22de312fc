// SPDX-License-Identifier: BSD-3-Clause

package k3d

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// kubectl writes down how it is called and what it is handed, and answers as $ANSWER tells it: the names of an agent's
// nodes on the first call of its status, and none on the second.
const kubectl = `#!/bin/sh
echo "$*" >>"$DIR/calls"
case "$*" in
*"create secret"*) cat >>"$DIR/stdin"; echo kind: Secret ;;
*"get secret"*) [ -n "$SECRET_EXISTS" ] ;;
*"get pods"*) echo pod/a ;;
*exec*) [ -z "$AGENT_SILENT" ] || exit 1; echo POD; [ -e "$DIR/gone" ] || { : >"$DIR/gone"; echo default/web; } ;;
apply*) cat >>"$DIR/applied" ;;
esac
`

// script runs one of our scripts with that kubectl, and returns what it has said and the files that kubectl has written.
func script(t *testing.T, name string, env ...string) (said string, file func(string) string, err error) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "kubectl"), []byte(kubectl), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("k3d/"+name, filepath.Join(dir, "kubectl"))
	cmd.Dir = ".."
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "DIR=" + dir}, env...)
	out, err := cmd.CombinedOutput()
	return string(out), func(name string) string {
		data, _ := os.ReadFile(filepath.Join(dir, name)) // none is as good as empty
		return string(data)
	}, err
}

// TestSecret: credentials reach kubectl through its standard input, and neither a command line nor the terminal.
func TestSecret(t *testing.T) {
	const id, secret, key = "k123", `s3cret "$HOME" \n=`, "tskey-auth-abc"
	for _, tt := range []struct {
		env   []string
		stdin string
		says  string
	}{
		{[]string{"TS_OAUTH_CLIENT_ID=" + id, "TS_OAUTH_CLIENT_SECRET=" + secret},
			"TS_OAUTH_CLIENT_ID=" + id + "\nTS_OAUTH_CLIENT_SECRET=" + secret + "\n", ""},
		{[]string{"TS_AUTHKEY=" + key}, "TS_AUTHKEY=" + key + "\n", ""},
		{nil, "", "TS_OAUTH_CLIENT_ID and TS_OAUTH_CLIENT_SECRET, or TS_AUTHKEY, are not in the environment"},
		{[]string{"TS_OAUTH_CLIENT_ID=" + id}, "", "are not in the environment"},
		{[]string{"SECRET_EXISTS=1"}, "", "stays as it is"},
	} {
		said, file, err := script(t, "secret.sh", tt.env...)
		if err != nil || file("stdin") != tt.stdin || !strings.Contains(said, tt.says) {
			t.Errorf("%q: %v, kubectl read %q, want %q; said %q", tt.env, err, file("stdin"), tt.stdin, said)
		}
		if applied := file("applied") != ""; applied != (tt.stdin != "") {
			t.Errorf("%q: applied: %t", tt.env, applied)
		}
		for _, value := range []string{secret, key} {
			if strings.Contains(said+file("calls"), value) {
				t.Errorf("%q: shown in %q or %q", tt.env, said, file("calls"))
			}
		}
	}
}

// TestLeave: the cluster is not deleted before the samples' devices are.
func TestLeave(t *testing.T) {
	said, file, err := script(t, "leave.sh")
	if err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	calls := strings.Split(strings.TrimSpace(file("calls")), "\n")
	if !strings.Contains(calls[0], "delete") || !strings.HasSuffix(calls[0], "-f k3d/samples") {
		t.Errorf("it begins with %q", calls[0])
	}
	if asked := strings.Count(file("calls"), "/tailscale-nri status"); asked != 2 {
		t.Errorf("asked %d times; the second answer is that no node is left\n%s", asked, file("calls"))
	}
	if said, _, err := script(t, "leave.sh", "AGENT_SILENT=1"); err == nil {
		t.Errorf("an agent that does not answer was taken for one without nodes: %s", said)
	}
}
