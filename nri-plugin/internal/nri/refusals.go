// SPDX-License-Identifier: BSD-3-Clause

package nri

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/api"

	"tailscale-nri/nri-plugin/internal/status"
)

// annotationRestarts is set by the kubelet on a container that it creates
// again: how often it has done so (kubelet/kuberuntime/labels.go).
const annotationRestarts = "io.kubernetes.container.restartCount"

// Refusals are the sandboxes that started while the plugin was away and would
// have been refused. What ran without the plugin goes on: only what never ran is kept
// from running. The zero value is empty.
type Refusals struct {
	mu    sync.Mutex
	known map[string]refusal // by sandbox ID
	said  map[string]saidOf  // by pod UID
}

type refusal struct {
	namespace, pod, uid string

	why   string
	ran   bool      // a container of the sandbox ran, or runs
	since time.Time // this is known
}

// Note remembers why the sandbox gets no node, and reports whether that is news:
// a runtime that restarts often is not to fill the log.
func (r *Refusals) Note(sb *api.PodSandbox, why error, ran bool) (news bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	was, again := r.known[sb.GetId()]
	if r.known == nil {
		r.known = make(map[string]refusal)
	}
	is := refusal{
		namespace: sb.GetNamespace(), pod: sb.GetName(), uid: sb.GetUid(),
		why: why.Error(), ran: ran || was.ran, since: time.Now(),
	}
	if again {
		is.since = was.since
	}
	r.known[sb.GetId()] = is
	return !again || was.why != why.Error()
}

// The kubelet tries again every few seconds, with another sandbox each time. The log
// has each error of a pod once in saidAgain, and mostSaid of them, since an error may
// name a path that is new each time.
const (
	saidAgain = time.Hour
	mostSaid  = 5
)

// saidOf are the errors of a pod that the log has had.
type saidOf struct {
	since time.Time
	texts []string
}

// isNews reports whether the log is to have the error of the pod with this UID.
func (r *Refusals) isNews(uid string, err error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.said, func(_ string, s saidOf) bool { return time.Since(s.since) >= saidAgain })
	if r.said == nil {
		r.said = make(map[string]saidOf)
	}
	s, again := r.said[uid]
	if !again {
		s.since = time.Now()
	}
	if slices.Contains(s.texts, err.Error()) || len(s.texts) == mostSaid {
		return false
	}
	s.texts = append(s.texts, err.Error())
	r.said[uid] = s
	return true
}

// ran reports whether a container of the sandbox ran before c is created. The
// runtime's list has shown that, or the kubelet's count of restarts does: exited
// containers are in no list (containerd 2.4.2, internal/cri/nri,
// ListContainers).
func (r *Refusals) ran(sb *api.PodSandbox, c *api.Container) bool {
	if n, err := strconv.Atoi(c.GetAnnotations()[annotationRestarts]); err == nil && n > 0 {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.known[sb.GetId()].ran
}

// keep forgets all sandboxes but these, so that the list never outgrows the host.
func (r *Refusals) keep(sandboxIDs map[string]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range r.known {
		if !sandboxIDs[id] {
			delete(r.known, id)
		}
	}
}

// drop forgets a sandbox that has ended.
func (r *Refusals) drop(sandboxID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.known, sandboxID)
}

// Nodes are the pods, by namespace and name, as those of a status.
func (r *Refusals) Nodes() (out []status.Node) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, s := range r.known {
		what := "gets no tailnet node: "
		if s.ran {
			what = "runs without a tailnet node: "
		}
		out = append(out, status.Node{
			Namespace: s.namespace, Pod: s.pod, UID: s.uid, SandboxID: id,
			State: status.NoNode, Reason: what + s.why, Since: s.since,
		})
	}
	slices.SortFunc(out, func(a, b status.Node) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.SandboxID, b.SandboxID))
	})
	return out
}
