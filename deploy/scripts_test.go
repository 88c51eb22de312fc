// SPDX-License-Identifier: BSD-3-Clause

package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// kubectlStub writes down how it is called and what it is handed, and answers as the environment tells it: the names of an
// agent's nodes on the first call of its status, and none on the second.
const kubectlStub = `#!/bin/sh
echo "$*" >>"$DIR/calls"
case "$*" in
*kustomize*) echo "$RENDERED" ;;
*"create secret"*) cat >>"$DIR/stdin"; echo kind: Secret ;;
*"get secret"*"{.data.HTTPS_PROXY}") printf %s "$PROXY" ;;
*"get secret"*"{.data."*) ;;
*"get secret"*) [ -z "$SERVER_SILENT" ] || exit 1; [ -z "$SECRET_EXISTS" ] || echo secret/x ;;
*"get configmap"*) echo "$NAMED" ;;
*"get daemonset"*) echo "2 ${OBSERVED:-2} $(echo "$NODES" | wc -l)" ;;
*"get controllerrevisions"*) echo new ;;
*"get nodes"*) echo "$NODES" ;;
*"get pods"*jsonpath*) echo "$PODS" ;;
*"get events"*) echo "Readiness probe failed: not ready: no NRI" ;;
*"get pods"*) [ -z "$SERVER_SILENT" ] || exit 1; echo pod/a ;;
*exec*) [ -z "$AGENT_SILENT" ] || exit 1; echo "POD  STATE"; [ -e "$DIR/gone" ] || { : >"$DIR/gone"; echo "default/web  Leaving"; }
	echo "default/old  NoNode  -  runs without a tailnet node"; exit 1 ;; # as status does where something is not Running
*"apply -f -" | *"create -f -" | *"replace -f -") cat >>"$DIR/applied" ;;
*logs*) echo why it is not ready ;;
esac
`

// runStubbed runs a program of ours with that kubectl first in its PATH, and returns what it has said and the files that kubectl
// has written.
func runStubbed(t *testing.T, env []string, program string, args ...string) (said string, file func(string) string, err error) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "kubectl"), []byte(kubectlStub), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, args...)
	cmd.Dir = ".."
	cmd.Env = append([]string{"PATH=" + dir + ":" + os.Getenv("PATH"), "HOME=" + dir, "DIR=" + dir}, env...)
	out, err := cmd.CombinedOutput()
	return string(out), func(name string) string {
		data, _ := os.ReadFile(filepath.Join(dir, name)) // none is as good as empty
		return string(data)
	}, err
}

// TestSecret: credentials reach kubectl through its standard input, and neither a command line nor the terminal. Where
// none would come, or two kinds, nothing is applied.
func TestSecret(t *testing.T) {
	const id, secret, key = "k123", `s3cret "$HOME" \n=`, "tskey-auth-abc"
	oauth := []string{"TS_OAUTH_CLIENT_ID=" + id, "TS_OAUTH_CLIENT_SECRET=" + secret}
	const none = "TS_OAUTH_CLIENT_ID and TS_OAUTH_CLIENT_SECRET, or TS_AUTHKEY, into the environment"
	for _, tt := range []struct {
		env   []string
		stdin string
		says  string
		fails bool
	}{
		{oauth, "TS_OAUTH_CLIENT_ID=" + id + "\nTS_OAUTH_CLIENT_SECRET=" + secret + "\n", "", false},
		{[]string{"TS_AUTHKEY=" + key}, "TS_AUTHKEY=" + key + "\n", "", false},
		{[]string{"TS_AUTHKEY=" + key, "SECRET_EXISTS=1"}, "TS_AUTHKEY=" + key + "\n", "", false},
		{ // PROXY is base64
			[]string{"TS_AUTHKEY=" + key, "SECRET_EXISTS=1", "PROXY=aHR0cDovL3U6cEBwcm94eToz", "HTTP_PROXY=http://not-the-hosts"},
			"TS_AUTHKEY=" + key + "\nHTTPS_PROXY=http://u:p@proxy:3\n", "", false,
		},
		{append([]string{"TS_AUTHKEY=" + key}, oauth...), "", "unset one", true},
		{nil, "", none, true},
		{[]string{"TS_OAUTH_CLIENT_ID=" + id}, "", none, true},
		{[]string{"SECRET_EXISTS=1"}, "", "stays as it is", false},
		{[]string{"RENDERED=- name: TS_ID_TOKEN_FILE"}, "", "", false},
		{[]string{"RENDERED=kind: Secret"}, "", "", false},
		{[]string{"TS_AUTHKEY=" + key, "RENDERED=TS_LOGIN_SERVER: REPLACE-ME"}, "", "an/overlay has REPLACE-ME in it", true},
		{[]string{`RENDERED=TS_OAUTH_CLIENT_ID: ""`}, "", "TS_OAUTH_CLIENT_ID in an/overlay is empty", true},
		{[]string{"TS_AUTHKEY=" + key, "SERVER_SILENT=1"}, "", "", true},
	} {
		said, file, err := runStubbed(t, tt.env, "deploy/secret.sh", "an/overlay", "kubectl")
		if (err != nil) != tt.fails || file("stdin") != tt.stdin || !strings.Contains(said, tt.says) {
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

// TestDeploy: what make deploy applies has the image of make image, it says what became of it, and it begins with
// whether it can work at all.
func TestDeploy(t *testing.T) {
	const rendered = "RENDERED=        image: tailscale-nri:dev"
	with := []string{"TS_AUTHKEY=k", rendered, oneNode, "PODS=pod a new n1 ready=True"}
	for _, tt := range []struct {
		env              []string
		args             []string
		applied, says    string
		fails, untouched bool
	}{
		{env: with, applied: "image: tailscale-nri:dev\n", says: "apply -f k3d/samples"},
		{env: with, args: []string{"IMAGE=r.example.com:5000/a/nri:1"}, applied: "image: r.example.com:5000/a/nri:1\n"},
		{env: append(with, "PODS=pod a new n1 ready=False"), args: []string{"WAIT=0"}, says: "why it is not ready", fails: true},
		{
			env:     []string{"TS_AUTHKEY=k", oneNode, "PODS=pod a new n1 ready=True", "RENDERED=  CLUSTER_NAME: REPLACE-ME"},
			args:    []string{"CLUSTER_NAME=mine"},
			applied: "  CLUSTER_NAME: mine\n", says: "deploy: ready",
		},
		{env: []string{rendered}, says: "no credentials", fails: true, untouched: true},
	} {
		said, file, err := runStubbed(t, tt.env, "make", append([]string{"--no-print-directory", "deploy"}, tt.args...)...)
		if (err != nil) != tt.fails || !strings.Contains(said, tt.says) {
			t.Errorf("%q %q: %v, said %q, want %q", tt.env, tt.args, err, said, tt.says)
		}
		if !strings.Contains(file("applied"), tt.applied) {
			t.Errorf("%q %q: applied %q, want %q", tt.env, tt.args, file("applied"), tt.applied)
		}
		if tt.untouched && strings.Contains(file("calls"), "apply") {
			t.Errorf("%q: it applied something:\n%s", tt.env, file("calls"))
		}
	}
}

// TestLoad: k3d-load makes the image of one platform, where that of make image stays, which has both.
func TestLoad(t *testing.T) {
	built := regexp.MustCompile(`-o \S+/([^/ ]+)/bin/([^/ ]+)/tailscale-nri `)
	for target, want := range map[string][]string{
		"k3d-load": {"k3d-image arm64"}, "image": {"image-out amd64", "image-out arm64"}, "lab-image": {"lab-image " + runtime.GOARCH},
	} {
		said, _, err := runStubbed(t, nil, "make", "-n", target, "K3D_ARCH=arm64")
		var got []string
		for _, match := range built.FindAllStringSubmatch(said, -1) {
			got = append(got, match[1]+" "+match[2])
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("make %s builds %q, want %q, %v:\n%s", target, got, want, err, said)
		}
		imports := regexp.MustCompile(`k3d image import .*/k3d-image/tailscale-nri-arm64\.tar`).MatchString(said)
		if imports != (target == "k3d-load") {
			t.Errorf("make %s imports it into k3d: %t\n%s", target, imports, said)
		}
	}
}

// TestLeave: the cluster is not deleted before the samples' devices are.
func TestLeave(t *testing.T) {
	said, file, err := runStubbed(t, nil, "k3d/leave.sh", "kubectl")
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
	for _, silent := range []string{"AGENT_SILENT=1", "SERVER_SILENT=1"} {
		if said, _, err := runStubbed(t, []string{silent}, "k3d/leave.sh", "kubectl"); err == nil {
			t.Errorf("%s: silence was taken for no nodes: %s", silent, said)
		}
	}
}

// oneNode is a cluster of one node, which is up.
const oneNode = "NODES=node n1 True"

// TestRollout: a node that is down holds nothing up, one that is up and not served is named with the reason, and what the
// controller has not come to does not count.
func TestRollout(t *testing.T) {
	const nodes = "NODES=node n1 True\nnode n2 True\nnode n3 Unknown"
	for _, tt := range []struct {
		name  string
		env   []string
		says  []string
		fails bool
	}{
		{"all", []string{oneNode, "PODS=pod a new n1 ready=True"}, nil, false},
		{"one is down", []string{nodes, "PODS=pod a new n1 ready=True\npod b new n2 ready=True\npod c old n3 ready=False"}, []string{"they are down: n3;"}, false},
		{
			"one waits", []string{nodes, "PODS=pod a new n1 ready=True\npod b old n2 ready=True\npod d new n2 ready=False\npod c old n3 ready=False"},
			[]string{"not every node", "n2 (d):", "Readiness probe failed: not ready: no NRI", "why it is not ready"}, true,
		},
		{"the old one serves", []string{oneNode, "PODS=pod a old n1 ready=True"}, []string{"n1 (a):"}, true},
		{"the new one goes", []string{oneNode, "PODS=pod a new n1 ready=True 2026-11-29T15:00:00Z"}, []string{"n1 (a):"}, true},
		{"a node has no pod yet", []string{nodes, "PODS=pod a new n1 ready=True"}, []string{"controller is behind"}, true},
		{"an earlier generation", []string{oneNode, "OBSERVED=1", "PODS=pod a new n1 ready=True"}, []string{"controller is behind"}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			said, _, err := runStubbed(t, append(tt.env, "WAIT=0"), "deploy/rollout.sh", "kubectl")
			if (err != nil) != tt.fails {
				t.Errorf("%v, said %q", err, said)
			}
			for _, want := range tt.says {
				if !strings.Contains(said, want) {
					t.Errorf("said %q, want %q", said, want)
				}
			}
			if tt.says == nil && said != "" {
				t.Errorf("said %q", said)
			}
		})
	}
}

// TestClusterName: no two developers' clusters have the same name by default, whatever they are called, and a cluster keeps the
// one that it has.
func TestClusterName(t *testing.T) {
	name := func(cluster string, env ...string) string {
		t.Helper()
		said, _, err := runStubbed(t, append(env, "K3D_CLUSTER="+cluster), "deploy/name.sh", "kubectl")
		if err != nil {
			t.Fatalf("%v: %s", err, said)
		}
		return strings.TrimSuffix(said, "\n")
	}
	if got := name("x", "CLUSTER_NAME=mine", "NAMED=before"); got != "mine" {
		t.Errorf("given mine, it is %q", got)
	}
	if got := name("x", "NAMED=before"); got != "before" {
		t.Errorf("it was before, and is %q", got)
	}
	label := regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)
	seen := map[string]bool{}
	for _, cluster := range []string{"a", "my_Cluster", strings.Repeat("long", 20), strings.Repeat("long", 20) + "er"} {
		for _, before := range []string{"", "NAMED=k3d", "NAMED=REPLACE-ME"} {
			got := name(cluster, before)
			if !label.MatchString(got) || got == cluster {
				t.Errorf("cluster %s is called %q", cluster, got)
			}
			seen[got] = true
		}
	}
	if len(seen) != 4 {
		t.Errorf("four clusters have the names %v", seen)
	}
}
