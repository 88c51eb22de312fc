// SPDX-License-Identifier: BSD-3-Clause

package kube

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"time"
)

// pki is the cluster's certificate authority.
type pki struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	ca   string // its certificate's file
}

// identity is whom a certificate is for.
type identity struct {
	name   string   // of its files
	user   string   // as Kubernetes knows it; the certificate's common name
	groups []string // its organizations
	ips    []string // it serves as well, under these addresses and names
	dns    []string
}

// life is longer than any lab's.
const life = 10 * 365 * 24 * time.Hour

// makePKI makes the authority and the key that signs ServiceAccount tokens.
func (c *Cluster) makePKI() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "lab-ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	cert, der, err := sign(template, template, key.Public(), key)
	if err != nil {
		return fmt.Errorf("making the certificate authority: %w", err)
	}
	c.pki = pki{cert: cert, key: key}
	if c.pki.ca, err = c.writePEM("ca.crt", "CERTIFICATE", der); err != nil {
		return err
	}
	if err := c.writeKey("ca.key", key); err != nil {
		return err
	}
	signer, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(signer.Public())
	if err != nil {
		return err
	}
	if _, err := c.writePEM("sa.pub", "PUBLIC KEY", public); err != nil {
		return err
	}
	return c.writeKey("sa.key", signer)
}

// issue makes a certificate with its key: NAME.crt and NAME.key.
func (c *Cluster) issue(id identity) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: id.user, Organization: id.groups},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames:    id.dns,
	}
	for _, ip := range id.ips {
		template.IPAddresses = append(template.IPAddresses, net.ParseIP(ip))
	}
	_, der, err := sign(template, c.pki.cert, key.Public(), c.pki.key)
	if err != nil {
		return fmt.Errorf("making the certificate of %s: %w", id.name, err)
	}
	if _, err := c.writePEM(id.name+".crt", "CERTIFICATE", der); err != nil {
		return err
	}
	return c.writeKey(id.name+".key", key)
}

func sign(template, parent *x509.Certificate, public crypto.PublicKey, signer crypto.Signer) (*x509.Certificate, []byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, err
	}
	template.SerialNumber = serial
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(life)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, der, err
}

func (c *Cluster) writeKey(name string, key crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	_, err = c.writePEM(name, "PRIVATE KEY", der)
	return err
}

func (c *Cluster) writePEM(name, kind string, der []byte) (string, error) {
	return c.write(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// kubeconfig issues a certificate and writes the file with which its holder calls the API server.
func (c *Cluster) kubeconfig(id identity) (string, error) {
	if err := c.issue(id); err != nil {
		return "", err
	}
	type obj = map[string]any
	user := obj{"client-certificate": c.path(id.name + ".crt"), "client-key": c.path(id.name + ".key")}
	config, err := json.MarshalIndent(obj{ // JSON is YAML
		"apiVersion": "v1", "kind": "Config", "current-context": "lab",
		"clusters": []obj{{"name": "lab", "cluster": obj{"server": serverURL, "certificate-authority": c.pki.ca}}},
		"users":    []obj{{"name": "lab", "user": user}},
		"contexts": []obj{{"name": "lab", "context": obj{"cluster": "lab", "user": "lab"}}},
	}, "", " ")
	if err != nil {
		return "", err
	}
	return c.write(id.name+".kubeconfig", config)
}
