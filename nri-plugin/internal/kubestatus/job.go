// SPDX-License-Identifier: BSD-3-Clause

package kubestatus

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"tailscale-nri/nri-plugin/internal/kubeapi"
)

// job is a request to the API, for one pod.
type job struct {
	pod     *pod
	class   int
	request kubeapi.Request
	want    condition // that it writes
	event   event     // that it writes
	name    string    // of the Event's object
	adds    bool      // to an Event that there is
	answer  answer
}

// answer is a pod, as far as it is used here.
type answer struct {
	Metadata struct {
		UID         string
		Annotations map[string]string
	}
	Status struct {
		Conditions []struct {
			Type string
			condition
		}
	}
}

// annotationMirror is the UID of a static pod, as the runtime knows it, in the mirror pod
// by which the API shows it.
const annotationMirror = "kubernetes.io/config.mirror"

// object is a Kubernetes object, as JSON has it.
type object = map[string]any

// begin makes the request. p.mu is held.
func (p *Publisher) begin(is *pod, class int, now time.Time) *job {
	j := &job{pod: is, class: class}
	switch class {
	case ofEvents:
		is.messages.AllowN(now, 1)
		p.beginEvent(j, now)
	case ofCondition:
		is.conditions.AllowN(now, 1)
		j.want = is.want
		c := object{"type": ConditionType, "status": j.want.Status, "reason": j.want.Reason, "message": j.want.Message}
		if !is.known || is.has.Status != j.want.Status {
			c["lastTransitionTime"] = stamp(now)
		}
		j.patch(object{"conditions": []object{c}})
	default:
		j.patch(nil)
	}
	return j
}

// patch makes the request for the status of the pod with that UID: the API refuses it
// if the one that has the name now is another (isNamesake). Without a status it
// changes nothing, and has the API answer with the pod.
func (j *job) patch(status object) {
	body := object{}
	if j.pod.apiUID != "" {
		body["metadata"] = object{"uid": j.pod.apiUID}
	}
	if status != nil {
		body["status"] = status
	}
	j.request = kubeapi.Request{
		Method: http.MethodPatch, Path: path(j.pod.namespace, "pods", j.pod.name) + "/status",
		Query: url.Values{"fieldManager": {manager}}, Type: kubeapi.StrategicMerge, Body: body, Answer: &j.answer,
	}
}

// manager is the name of this writer in Kubernetes' objects.
const manager = "tailscale-nri"

// eventLives is how long an API server keeps an Event by default.
const eventLives = time.Hour

// beginEvent makes the request of the oldest Event that is due: a new one, or a higher
// count of an existing one.
func (p *Publisher) beginEvent(j *job, now time.Time) {
	is := j.pod
	j.event = is.events[0]
	is.events = slices.Delete(is.events, 0, 1)
	is.since[ofEvents] = time.Time{}
	is.note(now)
	if was, ok := is.sent[j.event.reason]; ok && was.message == j.event.message && now.Sub(was.last) < eventLives {
		j.name, j.adds = was.name, true
		j.event.first, j.event.count = was.first, was.count+j.event.count
		j.request = kubeapi.Request{
			Method: http.MethodPatch, Path: path(is.namespace, "events", j.name),
			Query: url.Values{"fieldManager": {manager}}, Type: kubeapi.StrategicMerge,
			Body: object{"count": j.event.count, "lastTimestamp": stamp(j.event.last)},
		}
		return
	}
	// A pod's name may be as long as an object's.
	j.name = fmt.Sprintf("%s.%x", strings.TrimRight(is.name[:min(len(is.name), 253-17)], "-."), now.UnixNano())
	j.request = kubeapi.Request{
		Method: http.MethodPost, Path: path(is.namespace, "events", ""), Query: url.Values{"fieldManager": {manager}},
		Body: object{
			"apiVersion": "v1", "kind": "Event", "metadata": object{"name": j.name, "namespace": is.namespace},
			// The runtime's UID, for a static pod too: it is what kubectl describe looks for.
			"involvedObject": object{"apiVersion": "v1", "kind": "Pod", "namespace": is.namespace, "name": is.name, "uid": is.uid},
			"type":           j.event.kind, "reason": j.event.reason, "message": j.event.message, "count": j.event.count,
			"firstTimestamp": stamp(j.event.first), "lastTimestamp": stamp(j.event.last),
			"source":             object{"component": manager, "host": p.cfg.Host},
			"reportingComponent": manager, "reportingInstance": p.cfg.Host,
		},
	}
}

// path returns the path of an object in a namespace, or of all objects of a kind.
func path(namespace, kind, name string) string {
	p := "/api/v1/namespaces/" + url.PathEscape(namespace) + "/" + kind
	if name != "" {
		p += "/" + url.PathEscape(name)
	}
	return p
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// ours is the pod's condition, zero if it has none.
func (a *answer) ours() condition {
	for _, c := range a.Status.Conditions {
		if c.Type == ConditionType {
			return c.condition
		}
	}
	return condition{}
}
