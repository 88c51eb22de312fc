// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// rootsVar makes TestRoots say whom its process trusts.
const rootsVar = "TAILSCALE_NRI_TEST_ROOTS"

// TestRoots: without roots of the system those in the binary are trusted, and
// with some only those. Each case is a process, since one reads its roots once.
func TestRoots(t *testing.T) {
	if os.Getenv(rootsVar) != "" {
		fmt.Printf("trusted: public %t, private %t\n", trusted(publicCert(t)), trusted(privateCert(t)))
		return
	}
	dir := t.TempDir()
	private := filepath.Join(dir, "private.pem")
	if err := os.WriteFile(private, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: privateCert(t).Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, file, want string }{
		{"no system roots", filepath.Join(dir, "none"), "public true, private false"},
		{"an empty file", os.DevNull, "public true, private false"},
		{"a private authority", private, "public false, private true"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestRoots$")
			cmd.Env = append(os.Environ(), rootsVar+"=1", "SSL_CERT_FILE="+tt.file, "SSL_CERT_DIR="+dir+"/no-such")
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "trusted: "+tt.want) {
				t.Errorf("want %q, got %v\n%s", tt.want, err, out)
			}
		})
	}
}

func trusted(cert *x509.Certificate) bool {
	_, err := cert.Verify(x509.VerifyOptions{})
	return err == nil
}

// publicCert is that of an authority in the binary: Let's Encrypt's, whose
// certificate Tailscale's servers have.
func publicCert(t *testing.T) *x509.Certificate {
	t.Helper()
	for root := range bundle.Roots() {
		cert, err := x509.ParseCertificate(root.Certificate)
		if err != nil {
			t.Fatal(err)
		}
		if cert.Subject.CommonName == "ISRG Root X1" {
			return cert
		}
	}
	t.Fatal("ISRG Root X1 is not among the roots")
	return nil
}

// privateCert is signed by itself.
func privateCert(t *testing.T) *x509.Certificate {
	t.Helper()
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	return server.Certificate()
}
