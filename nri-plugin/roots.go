// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"crypto/x509"
	"errors"
	"log/slog"
	"os"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// trustOwnRoots is called once. The image holds this binary and nothing else, so the
// authorities that it trusts come with it. They count only where the system has none: a
// file in SSL_CERT_FILE, such as a private authority's, or a node's own bundle is used
// instead. Package fallback would do the same as the program starts, for 4 ms and 0.7 MB,
// and the hook, whose start a container waits for, needs none.
func trustOwnRoots() {
	pool := x509.NewCertPool()
	for root := range bundle.Roots() {
		cert, err := x509.ParseCertificate(root.Certificate)
		if err != nil {
			panic(err) // a test reads all of them
		}
		if root.Constraint != nil {
			pool.AddCertWithConstraint(cert, root.Constraint)
		} else {
			pool.AddCert(cert)
		}
	}
	x509.SetFallbackRoots(pool)
}

// envCertFile is read by crypto/x509, and is not a setting of this program.
const envCertFile = "SSL_CERT_FILE"

// checkRoots warns of a file of authorities that holds none. The same authorities are
// then trusted as without it, and crypto/x509 does not report that.
func checkRoots(getenv func(string) string, log *slog.Logger) {
	file := getenv(envCertFile)
	if file == "" {
		return
	}
	data, err := os.ReadFile(file)
	if err == nil && !x509.NewCertPool().AppendCertsFromPEM(data) {
		err = errors.New("it holds no certificate in PEM")
	}
	if err != nil {
		log.Warn(envCertFile+" names no file with an authority: trusting those in this program, or in the system's directories; "+
			"put the authority's certificate there in PEM, or unset "+envCertFile+", and restart", "file", file, "err", err)
	}
}
