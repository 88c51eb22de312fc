// SPDX-License-Identifier: BSD-3-Clause

// Package kubeapi asks the Kubernetes API, as the ServiceAccount of the pod that the
// program runs in.
//
// It is net/http. client-go costs tens of megabytes for a few kinds of objects, and
// tailscale.com/kube/kubeclient (v1.104.5) cannot delete. There is no cache and no
// watch, and nothing is tried again: the callers do that.
package kubeapi

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Config is how the API is reached.
type Config struct {
	URL       string // https://host:port
	Namespace string // of the pod that this runs in
	TokenFile string // the kubelet renews it
	CAFile    string // and this, too
}

// MountDir is where the kubelet puts a ServiceAccount's token, the cluster's
// certificate authority and the namespace.
const MountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

// InCluster is the configuration of a pod, with what is mounted in dir. component is
// the part below deploy/components that mounts it.
func InCluster(getenv func(string) string, dir, component string) (Config, error) {
	host, port := getenv("KUBERNETES_SERVICE_HOST"), cmp.Or(getenv("KUBERNETES_SERVICE_PORT"), "443")
	if host == "" {
		return Config{}, errors.New("KUBERNETES_SERVICE_HOST is not set: the kubelet sets it in every pod")
	}
	namespace, err := os.ReadFile(filepath.Join(dir, "namespace"))
	if err != nil {
		return Config{}, fmt.Errorf("finding this pod's namespace: %w: mount a ServiceAccount token there (deploy/components/%s)", err, component)
	}
	return Config{
		URL: "https://" + net.JoinHostPort(host, port), Namespace: strings.TrimSpace(string(namespace)),
		TokenFile: filepath.Join(dir, "token"), CAFile: filepath.Join(dir, "ca.crt"),
	}, nil
}

// Client makes requests of one API server. It may be used by many at once.
type Client struct {
	cfg Config

	mu   sync.Mutex
	ca   []byte // that http trusts
	http *http.Client
}

// New returns a client. Its error says that the certificate authority cannot be read.
func New(cfg Config) (*Client, error) {
	c := &Client{cfg: cfg}
	_, err := c.connection()
	return c, err
}

// connection returns an HTTP client that trusts the authority that is mounted now.
func (c *Client) connection() (*http.Client, error) {
	ca, err := os.ReadFile(c.cfg.CAFile)
	if err != nil {
		return nil, fmt.Errorf("reading the Kubernetes API's certificate authority: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.http != nil && bytes.Equal(ca, c.ca) {
		return c.http, nil
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s holds no certificate", c.cfg.CAFile)
	}
	if c.http != nil {
		c.http.CloseIdleConnections()
	}
	c.ca = ca
	// HTTP/1: a request that is given up closes its connection, where one of HTTP/2
	// would leave the next to the same server, though that may be gone.
	c.http = &http.Client{Transport: &http.Transport{
		Proxy:           nil, // the API is within the cluster
		DialContext:     (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		Protocols:       http1(),
		MaxIdleConns:    4, MaxIdleConnsPerHost: 4, IdleConnTimeout: 90 * time.Second,
		TLSHandshakeTimeout: 5 * time.Second,
	}}
	return c.http, nil
}

func http1() *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	return p
}

// Kinds of bodies.
const (
	JSON           = "application/json"
	StrategicMerge = "application/strategic-merge-patch+json"
)

// Request is a request to the API.
type Request struct {
	Method string
	Path   string // escaped, "/api/v1/namespaces/…"
	Query  url.Values
	Body   any    // to be encoded as JSON; nil is none
	Type   string // of the body, "" is JSON
	Answer any    // to be decoded into; nil drops the answer
}

// StatusError is an answer of the API other than success.
type StatusError struct {
	Code   int
	Reason string // a word of the API's, such as Forbidden
	Detail string // of a refusal for want of rights; others quote what was sent
}

func (e *StatusError) Error() string {
	text := fmt.Sprintf("the Kubernetes API answers %d %s", e.Code, cmp.Or(e.Reason, http.StatusText(e.Code)))
	if e.Detail != "" {
		text += ": " + e.Detail
	}
	return text
}

// LacksRights reports whether the API does not know the ServiceAccount, or does not
// let it do what was asked for.
func (e *StatusError) LacksRights() bool {
	return e.Code == http.StatusForbidden || e.Code == http.StatusUnauthorized
}

// HasStatus reports whether err is an answer with the code.
func HasStatus(err error, code int) bool {
	var e *StatusError
	return errors.As(err, &e) && e.Code == code
}

// maxAnswer is far above a page of a list.
const maxAnswer = 8 << 20

// Do makes a request. A *[StatusError] is in the error if the API has answered. Bodies
// may hold keys: no error quotes them.
func (c *Client) Do(ctx context.Context, r Request) error {
	req, err := c.encode(ctx, r)
	if err != nil {
		return err
	}
	conn, err := c.connection()
	if err != nil {
		return err
	}
	res, err := conn.Do(req)
	if err != nil {
		return fmt.Errorf("asking the Kubernetes API: %w", err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("reading the Kubernetes API's answer: %w", err)
	}
	if res.StatusCode/100 != 2 {
		return refusalOf(res.StatusCode, text)
	}
	if r.Answer != nil && json.Unmarshal(text, r.Answer) != nil {
		return errors.New("the Kubernetes API's answer is not the JSON that was asked for")
	}
	return nil
}

func (c *Client) encode(ctx context.Context, r Request) (*http.Request, error) {
	where := strings.TrimRight(c.cfg.URL, "/") + r.Path
	if len(r.Query) > 0 {
		where += "?" + r.Query.Encode()
	}
	var payload io.Reader
	if r.Body != nil {
		text, err := json.Marshal(r.Body)
		if err != nil {
			return nil, errors.New("encoding a request to the Kubernetes API")
		}
		payload = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, where, payload)
	if err != nil {
		return nil, fmt.Errorf("making a request to the Kubernetes API: %w", err)
	}
	token, err := os.ReadFile(c.cfg.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("reading the ServiceAccount token: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	req.Header.Set("Accept", JSON)
	req.Header.Set("Content-Type", cmp.Or(r.Type, JSON))
	req.Header.Set("User-Agent", "tailscale-nri")
	return req, nil
}

// refusalOf reads a Status. Its message is kept where it is about rights alone:
// others quote what was sent.
func refusalOf(code int, text []byte) error {
	var status struct{ Reason, Message string }
	_ = json.Unmarshal(text, &status) // of a proxy on the way, perhaps
	e := &StatusError{Code: code, Reason: status.Reason}
	if code == http.StatusForbidden {
		e.Detail = status.Message[:min(len(status.Message), 300)]
	}
	return e
}
