// SPDX-License-Identifier: BSD-3-Clause

package kubestate

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
)

const (
	testNamespace = "tailscale-nri"
	adminToken    = "admin-of-the-test"
	pluginToken   = "plugin-of-the-test"
)

// apiServer is a real kube-apiserver on an etcd of its own, with the rights that
// deploy/components/workload-state gives.
type apiServer struct {
	t    *testing.T
	url  string
	dir  string
	args []string
	cmd  *exec.Cmd
}

func startAPI(t *testing.T) *apiServer {
	t.Helper()
	a := &apiServer{t: t, dir: t.TempDir()}
	etcd, peer, port := freePort(t), freePort(t), freePort(t)
	etcdURL, peerURL := "http://127.0.0.1:"+etcd, "http://127.0.0.1:"+peer
	a.run("etcd", "--data-dir="+filepath.Join(a.dir, "etcd"), "--name=test", "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL, "--listen-peer-urls="+peerURL,
		"--initial-advertise-peer-urls="+peerURL, "--initial-cluster=test="+peerURL)
	a.write("tokens", adminToken+`,admin,1,"system:masters"`+"\n"+
		pluginToken+`,system:serviceaccount:`+testNamespace+`:tailscale-nri,2,"system:serviceaccounts"`+"\n"+
		`other,system:serviceaccount:default:other,3,"system:serviceaccounts"`+"\n")
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
	a.start()
	a.create("/api/v1/namespaces", "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+testNamespace+"}\n")
	a.grant()
	return a
}

// start starts the server, once more where it was stopped, and waits until it is ready.
func (a *apiServer) start() {
	a.t.Helper()
	a.cmd = a.run("kube-apiserver", a.args...)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		code, text := a.admin(http.MethodGet, "/readyz", "", "")
		if code == http.StatusOK {
			return
		}
		if time.Now().After(deadline) {
			a.t.Fatalf("kube-apiserver is not ready: %d %s", code, text)
		}
	}
}

func (a *apiServer) stop() {
	a.cmd.Process.Kill()
	a.cmd.Wait()
}

func (a *apiServer) run(name string, args ...string) *exec.Cmd {
	a.t.Helper()
	binary, err := filepath.Abs("../../.build/bin/" + name)
	if err != nil {
		a.t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(a.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		a.t.Fatal(err)
	}
	cmd := exec.Command(binary, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		a.t.Fatalf("%v; build it with: make lab-api", err)
	}
	a.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		log.Close()
	})
	return cmd
}

// grant applies the component's Role and its binding.
func (a *apiServer) grant() {
	a.t.Helper()
	manifests, err := os.ReadFile("../../deploy/components/workload-state/rbac.yaml")
	if err != nil {
		a.t.Fatal(err)
	}
	role, binding, _ := strings.Cut(string(manifests), "\n---\n")
	const rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/" + testNamespace
	a.create(rbac+"/roles", role)
	a.create(rbac+"/rolebindings", binding)
}

func (a *apiServer) create(path, manifest string) {
	a.t.Helper()
	if code, text := a.admin(http.MethodPost, path, "application/yaml", manifest); code != http.StatusCreated {
		a.t.Fatalf("creating at %s: %d %s", path, code, text)
	}
}

// admin makes a request as one who may do all.
func (a *apiServer) admin(method, path, kind, body string) (int, string) {
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

func (a *apiServer) write(name, text string) string {
	a.t.Helper()
	path := filepath.Join(a.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

// config is what the plugin has mounted, with that token.
func (a *apiServer) config(token string) Config {
	a.t.Helper()
	return Config{
		URL: a.url, Namespace: testNamespace,
		TokenFile: a.write("token-"+token, token+"\n"), CAFile: filepath.Join(a.dir, "apiserver.crt"),
	}
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
