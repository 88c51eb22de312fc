// SPDX-License-Identifier: BSD-3-Clause

package kubestate

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
	Namespace string
	TokenFile string // the kubelet renews it
	CAFile    string // and this, too
}

// MountDir is where the kubelet puts a ServiceAccount's token, the cluster's
// certificate authority and the namespace.
const MountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

// InCluster is the configuration of a pod, with what is mounted in dir.
func InCluster(getenv func(string) string, dir string) (Config, error) {
	host, port := getenv("KUBERNETES_SERVICE_HOST"), cmp.Or(getenv("KUBERNETES_SERVICE_PORT"), "443")
	if host == "" {
		return Config{}, errors.New("KUBERNETES_SERVICE_HOST is not set: the kubelet sets it in every pod")
	}
	namespace, err := os.ReadFile(filepath.Join(dir, "namespace"))
	if err != nil {
		return Config{}, fmt.Errorf("finding this pod's namespace: %w: mount a ServiceAccount token there (deploy/components/workload-state)", err)
	}
	return Config{
		URL: "https://" + net.JoinHostPort(host, port), Namespace: strings.TrimSpace(string(namespace)),
		TokenFile: filepath.Join(dir, "token"), CAFile: filepath.Join(dir, "ca.crt"),
	}, nil
}

// client speaks of Secrets of one namespace.
type client struct {
	cfg  Config
	base string

	mu   sync.Mutex
	ca   []byte // that http trusts
	http *http.Client
}

func newClient(cfg Config) (*client, error) {
	c := &client{cfg: cfg, base: strings.TrimRight(cfg.URL, "/") + "/api/v1/namespaces/" + url.PathEscape(cfg.Namespace) + "/secrets"}
	_, err := c.connection()
	return c, err
}

// connection returns an HTTP client that trusts the authority that is mounted now.
func (c *client) connection() (*http.Client, error) {
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

// statusError is an answer of the API that is no success.
type statusError struct {
	code   int
	reason string // a word of the API's, such as Forbidden
	detail string
}

func (e *statusError) Error() string {
	text := fmt.Sprintf("the Kubernetes API answers %d %s", e.code, cmp.Or(e.reason, http.StatusText(e.code)))
	if e.detail != "" {
		text += ": " + e.detail
	}
	if e.code == http.StatusForbidden || e.code == http.StatusUnauthorized {
		text += ": apply deploy/components/workload-state, or set workloadState of the chart, for the rights"
	}
	return text
}

func hasStatus(err error, code int) bool {
	var e *statusError
	return errors.As(err, &e) && e.code == code
}

// maxAnswer is far above a page of a list.
const maxAnswer = 8 << 20

// do makes one request of a Secret, or of all where name is "". Bodies may hold keys:
// nothing of them is in an error.
func (c *client) do(ctx context.Context, method, name string, query url.Values, body, answer any) error {
	where := c.base
	if name != "" {
		where += "/" + name
	}
	if len(query) > 0 {
		where += "?" + query.Encode()
	}
	var payload io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return errors.New("encoding a request to the Kubernetes API")
		}
		payload = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, where, payload)
	if err != nil {
		return fmt.Errorf("making a request to the Kubernetes API: %w", err)
	}
	token, err := os.ReadFile(c.cfg.TokenFile)
	if err != nil {
		return fmt.Errorf("reading the ServiceAccount token: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "tailscale-nri")
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
	if answer != nil && json.Unmarshal(text, answer) != nil {
		return errors.New("the Kubernetes API's answer is no JSON of a Secret")
	}
	return nil
}

// refusalOf reads a Status. Its message is shown where it is about rights alone:
// others quote what was sent.
func refusalOf(code int, text []byte) error {
	var status struct{ Reason, Message string }
	_ = json.Unmarshal(text, &status) // of a proxy on the way, perhaps
	e := &statusError{code: code, reason: status.Reason}
	if code == http.StatusForbidden {
		e.detail = status.Message[:min(len(status.Message), 300)]
	}
	return e
}
