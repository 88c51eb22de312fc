// SPDX-License-Identifier: BSD-3-Clause

// Package kubestate keeps the identities of workloads in Secrets of the plugin's own
// namespace: who may read the Secrets of a pod's namespace must not have its keys.
//
// A Secret's resourceVersion is the identity's version. The API server answers with a
// conflict to a PUT or a DELETE that names another version, and to a POST of a name that
// exists. That is the compare-and-swap that engine.IdentityStore asks for; etcd puts all
// of them in one order.
//
// It does not decide which pod has an identity, nor when one is given up: the engine
// does.
package kubestate

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"tailscale.com/tailcfg"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/kubeapi"
)

// schema is the version of what lies in a Secret. Another one is not read.
const schema = "1"

const (
	secretType = "tailscale-nri/workload-identity"
	namePrefix = "tailscale-nri-workload-"

	labelManaged = "app.kubernetes.io/managed-by"
	labelCluster = "tailscale-nri-cluster"
	managedBy    = "tailscale-nri"

	noteNamespace = "tailscale-nri/namespace"
	notePod       = "tailscale-nri/pod"
)

// pageSize bounds one answer to a list: some 5 kB each.
const pageSize = 200

// Store is an [engine.IdentityStore].
type Store struct {
	api     *kubeapi.Client
	secrets string // path
	cluster string
}

var _ engine.IdentityStore = (*Store)(nil)

// New returns the store of a cluster, a name that may be a label's value.
func New(cfg kubeapi.Config, cluster string) (*Store, error) {
	c, err := kubeapi.New(cfg)
	if err != nil {
		return nil, err
	}
	return &Store{c, "/api/v1/namespaces/" + url.PathEscape(cfg.Namespace) + "/secrets", cluster}, nil
}

// do makes one request of a Secret, or of all where name is "".
func (s *Store) do(ctx context.Context, method, name string, query url.Values, body, answer any) error {
	path := s.secrets
	if name != "" {
		path += "/" + name
	}
	err := s.api.Do(ctx, kubeapi.Request{Method: method, Path: path, Query: query, Body: body, Answer: answer})
	if e := new(kubeapi.StatusError); errors.As(err, &e) && e.LacksRights() {
		err = fmt.Errorf("%w: add deploy/components/workload-state to the overlay, or set workloadState of the chart, for the rights", err)
	}
	return err
}

// secret is a Kubernetes Secret, as far as it is used here.
type secret struct {
	APIVersion string            `json:"apiVersion,omitempty"`
	Kind       string            `json:"kind,omitempty"`
	Metadata   metadata          `json:"metadata"`
	Type       string            `json:"type,omitempty"`
	Data       map[string][]byte `json:"data,omitempty"`
}

type metadata struct {
	Name            string            `json:"name,omitempty"`
	Labels          map[string]string `json:"labels,omitempty"`
	Annotations     map[string]string `json:"annotations,omitempty"`
	ResourceVersion string            `json:"resourceVersion,omitempty"`
	Continue        string            `json:"continue,omitempty"` // of a list
}

type secretList struct {
	Metadata metadata `json:"metadata"`
	Items    []secret `json:"items"`
}

// name is a hash, since a namespace and a pod's name may be longer together than a
// name may be.
func (s *Store) name(key engine.WorkloadKey) string {
	sum := sha256.Sum256([]byte(s.cluster + "\x00" + key.Namespace + "\x00" + key.Pod))
	return namePrefix + hex.EncodeToString(sum[:16])
}

func (s *Store) labels() map[string]string {
	return map[string]string{labelManaged: managedBy, labelCluster: s.cluster}
}

// Load implements [engine.IdentityStore].
func (s *Store) Load(ctx context.Context, key engine.WorkloadKey) (engine.Identity, error) {
	var found secret
	err := s.do(ctx, http.MethodGet, s.name(key), nil, nil, &found)
	if kubeapi.HasStatus(err, http.StatusNotFound) {
		return engine.Identity{}, engine.ErrNoIdentity
	}
	if err != nil {
		return engine.Identity{}, err
	}
	_, id, err := s.decode(found)
	return id, err
}

// Save implements [engine.IdentityStore].
func (s *Store) Save(ctx context.Context, key engine.WorkloadKey, id engine.Identity) (string, error) {
	what := s.encode(key, id)
	method, name := http.MethodPut, what.Metadata.Name
	if id.Version == "" {
		method, name = http.MethodPost, ""
	}
	var saved secret
	err := s.do(ctx, method, name, nil, what, &saved)
	if kubeapi.HasStatus(err, http.StatusConflict) || id.Version != "" && kubeapi.HasStatus(err, http.StatusNotFound) {
		return "", engine.ErrIdentityChanged
	}
	if err == nil && saved.Metadata.ResourceVersion == "" {
		err = errors.New("the Kubernetes API has stored the Secret and names no version of it")
	}
	return saved.Metadata.ResourceVersion, err
}

// Delete implements [engine.IdentityStore].
func (s *Store) Delete(ctx context.Context, key engine.WorkloadKey, version string) error {
	options := map[string]any{
		"apiVersion": "v1", "kind": "DeleteOptions",
		"preconditions": map[string]string{"resourceVersion": version},
	}
	err := s.do(ctx, http.MethodDelete, s.name(key), nil, options, nil)
	switch {
	case kubeapi.HasStatus(err, http.StatusNotFound):
		return nil
	case kubeapi.HasStatus(err, http.StatusConflict):
		return engine.ErrIdentityChanged
	}
	return err
}

// List implements [engine.IdentityStore]. A Secret that cannot be read is an error:
// its device would be taken for an unused one.
func (s *Store) List(ctx context.Context) (map[engine.WorkloadKey]engine.Identity, error) {
	all := map[engine.WorkloadKey]engine.Identity{}
	query := url.Values{
		"labelSelector": {fmt.Sprintf("%s=%s,%s=%s", labelManaged, managedBy, labelCluster, s.cluster)},
		"limit":         {strconv.Itoa(pageSize)},
	}
	for {
		var page secretList
		if err := s.do(ctx, http.MethodGet, "", query, nil, &page); err != nil {
			return nil, err
		}
		for _, item := range page.Items {
			key, id, err := s.decode(item)
			if err != nil {
				return nil, err
			}
			all[key] = id
		}
		if page.Metadata.Continue == "" {
			return all, nil
		}
		query.Set("continue", page.Metadata.Continue)
	}
}

func (s *Store) encode(key engine.WorkloadKey, id engine.Identity) secret {
	text := map[string]string{
		"schema":     schema,
		"generation": strconv.FormatUint(id.Generation, 10),
		"host":       id.Holder.Host,
		"pod-uid":    id.Holder.PodUID,
		"last-used":  id.LastUsed.UTC().Format(time.RFC3339),
		"node-id":    string(id.NodeID),
		"registered": strconv.FormatBool(id.Registered),
	}
	data := map[string][]byte{"state": id.State}
	for k, v := range text {
		data[k] = []byte(v)
	}
	return secret{
		APIVersion: "v1", Kind: "Secret", Type: secretType, Data: data,
		Metadata: metadata{
			Name: s.name(key), Labels: s.labels(), ResourceVersion: id.Version,
			Annotations: map[string]string{noteNamespace: key.Namespace, notePod: key.Pod},
		},
	}
}

// decode reads a Secret. Its errors quote nothing of its content.
func (s *Store) decode(from secret) (key engine.WorkloadKey, id engine.Identity, err error) {
	text := maps.Collect(func(yield func(k, v string) bool) {
		for k, v := range from.Data {
			if !yield(k, string(v)) {
				return
			}
		}
	})
	bad := func(what string) error {
		return fmt.Errorf("the Secret %s is not an identity of this version of tailscale-nri (%s): delete it, and its device, if nothing else uses it", from.Metadata.Name, what)
	}
	key = engine.WorkloadKey{Namespace: from.Metadata.Annotations[noteNamespace], Pod: from.Metadata.Annotations[notePod]}
	if from.Type != secretType || text["schema"] != schema {
		return key, id, bad("its type or its schema")
	}
	if s.name(key) != from.Metadata.Name {
		return key, id, bad("its annotations name another pod")
	}
	id = engine.Identity{
		Version: from.Metadata.ResourceVersion,
		Holder:  engine.Holder{Host: text["host"], PodUID: text["pod-uid"]},
		NodeID:  tailcfg.StableNodeID(text["node-id"]), State: from.Data["state"],
	}
	if id.Generation, err = strconv.ParseUint(text["generation"], 10, 64); err != nil {
		return key, id, bad("its generation")
	}
	if id.LastUsed, err = time.Parse(time.RFC3339, text["last-used"]); err != nil {
		return key, id, bad("its last-used")
	}
	if id.Registered, err = strconv.ParseBool(text["registered"]); err != nil {
		return key, id, bad("its registered")
	}
	return key, id, nil
}
