// SPDX-License-Identifier: BSD-3-Clause

package kube

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"tailscale-nri/k3d/lab"
)

func TestUpWithoutTools(t *testing.T) {
	_, err := Up(t.Context(), Config{Lab: lab.Config{Name: "tsnri-none", Build: t.TempDir()}})
	if err == nil || !strings.Contains(err.Error(), "etcd; build it with: make lab-kube") {
		t.Errorf("got %v", err)
	}
	if left, err := Remains(Config{Lab: lab.Config{Name: "tsnri-none"}}); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

// TestPKI has a server and a client that know each other by the cluster's authority.
func TestPKI(t *testing.T) {
	c := &Cluster{dir: t.TempDir()}
	if err := c.makePKI(); err != nil {
		t.Fatal(err)
	}
	err := c.issue(identity{name: "server", user: "kube-apiserver", ips: []string{serverIP}, dns: []string{"kubernetes"}})
	if err != nil {
		t.Fatal(err)
	}
	file, err := c.kubeconfig(identity{name: "node", user: "system:node:n1", groups: []string{"system:nodes"}})
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Users []struct {
			User map[string]string `json:"user"`
		} `json:"users"`
		Clusters []struct {
			Cluster map[string]string `json:"cluster"`
		} `json:"clusters"`
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	authority, err := os.ReadFile(config.Clusters[0].Cluster["certificate-authority"])
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authority) {
		t.Fatal("the authority's file holds no certificate")
	}
	user := config.Users[0].User
	client := load(t, user["client-certificate"], user["client-key"])
	server := load(t, c.path("server.crt"), c.path("server.key"))
	for _, host := range []string{serverIP, "kubernetes"} {
		if _, err := server.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: host}); err != nil {
			t.Errorf("the server as %s: %v", host, err)
		}
	}
	_, err = client.Leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		t.Errorf("the client: %v", err)
	}
	if s := client.Leaf.Subject; s.CommonName != "system:node:n1" || len(s.Organization) != 1 || s.Organization[0] != "system:nodes" {
		t.Errorf("the client is %v", s)
	}
}

func load(t *testing.T, cert, key string) tls.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}
