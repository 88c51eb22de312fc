// SPDX-License-Identifier: BSD-3-Clause

// Package issuertest is an issuer of tokens for tests, as a Kubernetes API
// server is one for its ServiceAccounts.
//
// The package does not serve: a test that needs the keys at a URL serves them.
package issuertest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Issuer signs tokens with one key.
type Issuer struct {
	URL    string // goes into "iss"
	key    jose.JSONWebKey
	signer jose.Signer
}

// New makes an issuer with a key of its own, for jose.RS256 or jose.ES256. The
// key's ID is keyID.
func New(url, keyID string, algorithm jose.SignatureAlgorithm) (*Issuer, error) {
	i := &Issuer{URL: url, key: jose.JSONWebKey{KeyID: keyID, Algorithm: string(algorithm), Use: "sig"}}
	var err error
	switch algorithm {
	case jose.RS256:
		i.key.Key, err = rsa.GenerateKey(rand.Reader, 2048)
	case jose.ES256:
		i.key.Key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	default:
		err = fmt.Errorf("no key is made for %s", algorithm)
	}
	if err != nil {
		return nil, fmt.Errorf("making the issuer's key: %w", err)
	}
	i.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: i.key}, nil)
	if err != nil {
		return nil, fmt.Errorf("making the issuer's signer: %w", err)
	}
	return i, nil
}

// JWKS is the set of the issuer's one public key.
func (i *Issuer) JWKS() (json.RawMessage, error) {
	return json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{i.key.Public()}})
}

// Claims returns those of a good token, which is good for an hour.
func (i *Issuer) Claims(subject string, audience ...string) jwt.Claims {
	now := time.Now()
	return jwt.Claims{
		Issuer: i.URL, Subject: subject, Audience: audience,
		IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(time.Hour)),
	}
}

// Sign makes a token of claims.
func (i *Issuer) Sign(claims jwt.Claims) (string, error) {
	return jwt.Signed(i.signer).Claims(claims).Serialize()
}
