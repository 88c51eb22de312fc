// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/x509roots/fallback/bundle"
	"tailscale.com/net/tlsdial"

	"tailscale-nri/nri-plugin/internal/plugintest"
)

// rootsVar makes TestRoots say whom its process trusts.
const rootsVar = "TAILSCALE_NRI_TEST_ROOTS"

// TestRoots: without roots of the system those in the binary are trusted, and
// with some only those, but for Let's Encrypt's, which tailscale.com trusts of
// control servers and DERP in any case. The API's client does not. Each case is
// a process, since one reads its roots once. deploy/components/private-ca tells
// users so.
func TestRoots(t *testing.T) {
	if os.Getenv(rootsVar) != "" {
		trustOwnRoots()
		for _, client := range []struct {
			name   string
			trusts func(*x509.Certificate) bool
		}{{"API", trustedByAPI}, {"tailnet", trustedInTailnet}} {
			fmt.Printf("%s: Let's Encrypt %t, another %t, private %t\n", client.name, client.trusts(publicCert(t, letsEncrypt)),
				client.trusts(publicCert(t, another)), client.trusts(privateCert(t)))
		}
		return
	}
	const own = "Let's Encrypt true, another true, private false"
	dir := t.TempDir()
	private := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: privateCert(t).Raw})
	public := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: publicCert(t, another).Raw})
	for _, tt := range []struct{ name, file, api, tailnet string }{
		{"no system roots", filepath.Join(dir, "none"), own, own},
		{"an empty file", os.DevNull, own, own},
		{
			"a private authority", plugintest.WriteFile(t, dir, "private", private),
			"Let's Encrypt false, another false, private true", "Let's Encrypt true, another false, private true",
		},
		{
			"a private and a public one", plugintest.WriteFile(t, dir, "both", append(public, private...)),
			"Let's Encrypt false, another true, private true", "Let's Encrypt true, another true, private true",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestRoots$")
			cmd.Env = append(os.Environ(), rootsVar+"=1", "SSL_CERT_FILE="+tt.file, "SSL_CERT_DIR="+dir+"/no-such")
			cmd.Stderr = t.Output() // tailscale.com logs what it does not trust
			out, err := cmd.Output()
			want := "API: " + tt.api + "\ntailnet: " + tt.tailnet + "\n"
			if err != nil || !strings.Contains(string(out), want) {
				t.Errorf("want %q, got %v\n%s", want, err, out)
			}
		})
	}
}

// TestRootsThatAreNone: a file that adds nothing to what is trusted is told of.
func TestRootsThatAreNone(t *testing.T) {
	dir := t.TempDir()
	private := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: privateCert(t).Raw})
	for _, tt := range []struct {
		name, file string
		warns      bool
	}{
		{"not set", "", false},
		{"one", plugintest.WriteFile(t, dir, "private", private), false},
		{"one after what is none", plugintest.WriteFile(t, dir, "mixed", append([]byte("# ours\n"), private...)), false},
		{"missing", filepath.Join(dir, "missing"), true},
		{"empty", plugintest.WriteFile(t, dir, "empty", nil), true},
		{"no PEM", plugintest.WriteFile(t, dir, "der", privateCert(t).Raw), true},
		{"a key", plugintest.WriteFile(t, dir, "key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte(plugintest.Secret)})), true},
	} {
		book := plugintest.NewLogBook()
		checkRoots(plugintest.Environment(map[string]string{envCertFile: tt.file}), slog.New(slog.NewTextHandler(book, nil)))
		if warns := book.Count("level=WARN") == 1 && book.Count("unset SSL_CERT_FILE") == 1 && book.Count("file="+tt.file) == 1; warns != tt.warns {
			t.Errorf("%s: the log says %q", tt.name, book)
		}
	}
	p := serving(t, t.TempDir(), func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, envCertFile+"="+filepath.Join(dir, "missing")) })
	if n := p.book.Count("unset SSL_CERT_FILE"); n != 1 {
		t.Errorf("the program says so %d times\n%s", n, p.book)
	}
}

// trustedByAPI verifies as http.DefaultTransport does, with which the API is
// asked.
func trustedByAPI(cert *x509.Certificate) bool {
	_, err := cert.Verify(x509.VerifyOptions{})
	return err == nil
}

// trustedInTailnet verifies as tailscale.com does for a control server and DERP.
func trustedInTailnet(cert *x509.Certificate) bool {
	verify := tlsdial.Config(nil, nil).VerifyConnection
	return verify(tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}) == nil
}

// Authorities in the binary: the one whose certificates Tailscale's servers
// have, and one of the others.
const (
	letsEncrypt = "ISRG Root X1"
	another     = "DigiCert Global Root G2"
)

// publicCert is the certificate of an authority in the binary.
func publicCert(t *testing.T, name string) *x509.Certificate {
	t.Helper()
	for root := range bundle.Roots() {
		cert, err := x509.ParseCertificate(root.Certificate)
		if err != nil {
			t.Fatal(err)
		}
		if cert.Subject.CommonName == name {
			return cert
		}
	}
	t.Fatalf("%s is not among the roots", name)
	return nil
}

// privateCert is signed by itself.
func privateCert(t *testing.T) *x509.Certificate {
	t.Helper()
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	return server.Certificate()
}
