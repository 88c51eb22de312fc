// SPDX-License-Identifier: BSD-3-Clause

// Package apitest runs a real kube-apiserver, on an etcd of its own, for tests of what
// talks to it. There is nothing else of Kubernetes: no kubelet, no controller.
package apitest

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"tailscale-nri/nri-plugin/internal/kubeapi"
)

// Namespace is the plugin's. It exists.
const Namespace = "tailscale-nri"

// Tokens that the server knows: the plugin's ServiceAccount, and another, neither of
// which has rights before somebody gives it some.
const (
	PluginToken = "plugin-of-the-test"
	OtherToken  = "other"
	adminToken  = "admin-of-the-test"
)

// Server is a kube-apiserver that ends with the test.
type Server struct {
	t    *testing.T
	url  string
	dir  string
	args []string
	cmd  *exec.Cmd
}

// Start starts a server, and returns when it is ready.
func Start(t *testing.T) *Server {
	t.Helper()
	a := &Server{t: t, dir: t.TempDir()}
	etcd, peer, port := freePort(t), freePort(t), freePort(t)
	etcdURL, peerURL := "http://127.0.0.1:"+etcd, "http://127.0.0.1:"+peer
	a.run("etcd", "--data-dir="+filepath.Join(a.dir, "etcd"), "--name=test", "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL, "--listen-peer-urls="+peerURL,
		"--initial-advertise-peer-urls="+peerURL, "--initial-cluster=test="+peerURL)
	a.write("tokens", adminToken+`,admin,1,"system:masters"`+"\n"+
		PluginToken+`,system:serviceaccount:`+Namespace+`:tailscale-nri,2,"system:serviceaccounts"`+"\n"+
		OtherToken+`,system:serviceaccount:default:other,3,"system:serviceaccounts"`+"\n")
	key := filepath.Join(a.dir, "sa.key")
	if out, err := exec.Command("openssl", "genrsa", "-out", key, "2048").CombinedOutput(); err != nil {
		t.Fatalf("making a key: %v: %s", err, out)
	}
	a.url = "https://127.0.0.1:" + port
	a.args = []string{
		"--etcd-servers=" + etcdURL, "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port=" + port,
		"--cert-dir=" + a.dir, "--token-auth-file=" + filepath.Join(a.dir, "tokens"), "--authorization-mode=RBAC",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + key,
		"--service-account-signing-key-file=" + key, "--service-cluster-ip-range=10.96.0.0/16",
		"--endpoint-reconciler-type=none", "--profiling=false",
	}
	a.Restart()
	a.Create("/api/v1/namespaces", "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+Namespace+"}\n")
	return a
}

// Restart starts the server that was stopped, and waits until it is ready.
func (a *Server) Restart() {
	a.t.Helper()
	a.cmd = a.run("kube-apiserver", a.args...)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		code, text := a.Admin(http.MethodGet, "/readyz", "", "")
		if code == http.StatusOK {
			return
		}
		if time.Now().After(deadline) {
			a.t.Fatalf("kube-apiserver is not ready: %d %s", code, text)
		}
	}
}

// Stop kills the server. What it has stored stays.
func (a *Server) Stop() {
	end(a.cmd)
}

func (a *Server) run(name string, args ...string) *exec.Cmd {
	a.t.Helper()
	log, err := os.OpenFile(filepath.Join(a.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		a.t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(root(a.t), ".build", "bin", name), args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		a.t.Fatalf("%v; build it with: make lab-api", err)
	}
	a.t.Cleanup(func() {
		end(cmd)
		log.Close()
	})
	return cmd
}

// end kills a program, which may have ended.
func end(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// Grant creates the objects of a file below the project's root: roles and bindings, and
// policies of admission.
func (a *Server) Grant(path string) {
	a.t.Helper()
	manifests, err := os.ReadFile(filepath.Join(root(a.t), path))
	if err != nil {
		a.t.Fatal(err)
	}
	for manifest := range strings.SplitSeq(string(manifests), "\n---\n") {
		var o struct {
			APIVersion, Kind string
			Metadata         struct{ Namespace string }
		}
		if err := yaml.Unmarshal([]byte(manifest), &o); err != nil {
			a.t.Fatalf("%s: %v", path, err)
		}
		where := "/apis/" + o.APIVersion
		if o.Metadata.Namespace != "" {
			where += "/namespaces/" + o.Metadata.Namespace
		}
		plural := strings.ToLower(o.Kind) + "s"
		if strings.HasSuffix(o.Kind, "Policy") {
			plural = strings.TrimSuffix(plural, "ys") + "ies"
		}
		a.Create(where+"/"+plural, manifest)
	}
}

// root is the project's directory.
func root(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
	}
	t.Fatal("no go.mod above this directory")
	return ""
}

// Create creates an object, written in YAML, at the path of its kind.
func (a *Server) Create(path, manifest string) {
	a.t.Helper()
	if code, text := a.Admin(http.MethodPost, path, "application/yaml", manifest); code != http.StatusCreated {
		a.t.Fatalf("creating at %s: %d %s", path, code, text)
	}
}

// Admin makes a request as one who may do all. kind is the body's Content-Type. A code
// of 0 is no answer, and the text says why.
func (a *Server) Admin(method, path, kind, body string) (int, string) {
	a.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, a.url+path, bytes.NewReader([]byte(body)))
	if err != nil {
		a.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+adminToken)
	req.Header.Set("Content-Type", kind)
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}
	res, err := (&http.Client{Transport: tr, Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(text)
}

func (a *Server) write(name, text string) string {
	a.t.Helper()
	path := filepath.Join(a.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

// Config is what the plugin has mounted, with that token.
func (a *Server) Config(token string) kubeapi.Config {
	a.t.Helper()
	return kubeapi.Config{
		URL: a.url, Namespace: Namespace,
		TokenFile: a.SetToken("token-"+token[:min(len(token), 20)], token), CAFile: filepath.Join(a.dir, "apiserver.crt"),
	}
}

// SetToken writes a file that Config names, or a further one, and returns its path.
func (a *Server) SetToken(name, token string) string { return a.write(name, token+"\n") }

// BoundToken returns a token of a ServiceAccount of the plugin's namespace that is bound to
// a pod of that namespace, as the kubelet asks for it.
func (a *Server) BoundToken(account, pod string) string {
	a.t.Helper()
	code, text := a.Admin(http.MethodPost, "/api/v1/namespaces/"+Namespace+"/serviceaccounts/"+account+"/token", "application/yaml",
		"apiVersion: authentication.k8s.io/v1\nkind: TokenRequest\nspec: {expirationSeconds: 3600, boundObjectRef: {apiVersion: v1, kind: Pod, name: "+pod+"}}\n")
	var answer struct{ Status struct{ Token string } }
	if err := yaml.Unmarshal([]byte(text), &answer); code != http.StatusCreated || err != nil || answer.Status.Token == "" {
		a.t.Fatalf("asking for a token: %d %s", code, text)
	}
	return answer.Status.Token
}

func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return fmt.Sprint(ln.Addr().(*net.TCPAddr).Port)
}
