// SPDX-License-Identifier: BSD-3-Clause

package kubestatus

import (
	"errors"
	"net/http"
	"strings"
	"time"

	"tailscale-nri/nri-plugin/internal/kubeapi"
)

const (
	// deniedFirst, doubled up to deniedMost, is how long what the ServiceAccount may not do
	// is not tried again. An API server that has just started may not know yet who may do
	// what (1.37), so the first pause is short, and not logged.
	deniedFirst, deniedMost = 5 * time.Second, 10 * time.Minute
	// troubleMost is as long for what the API cannot do, as where a webhook of its is away.
	troubleMost = time.Minute
	// outageFirst, doubled up to outageMost, is how long nothing is tried after no answer.
	outageFirst, outageMost = time.Second, time.Minute
	// podTries bounds how often the write to one pod is tried that others write to.
	podTries = 5
	// A static pod has its mirror pod in the API late, if the API was away. Any other that
	// is not there is gone.
	mirrorTries, mirrorTakes = 2, 10 * time.Second
	// saidAgain is how long a line is not logged again.
	saidAgain = time.Hour
)

// right is a permission of the ServiceAccount in a namespace.
type right struct{ kind, namespace string }

func rightOf(class int, namespace string) right {
	if class == ofEvents {
		return right{"events", namespace}
	}
	return right{"pods/status", namespace}
}

// denial is a time in which something is not allowed, or cannot be done.
type denial struct {
	until time.Time
	pause time.Duration

	trouble bool // it is allowed, as far as is known
}

// again makes a denial last longer, up to most, and reports whether it is the first.
func (d denial) again(now time.Time, most time.Duration) (_ denial, first bool) {
	first = d.pause == 0
	d.pause = min(max(2*d.pause, deniedFirst), most)
	d.until = now.Add(d.pause)
	return d, first
}

// outage is a time in which the API does not answer.
type outage struct {
	lasts bool
	said  bool // in the log
	pause time.Duration
}

// done takes in how a job has ended. p.mu is held.
func (p *Publisher) done(j *job, err error, now time.Time) {
	var status *kubeapi.StatusError
	switch {
	case err == nil:
		p.answered()
		p.succeeded(j)
	case errors.As(err, &status) && status.Code == http.StatusInternalServerError:
		p.troubled(j, err, now)
	case status == nil, status.Code == http.StatusTooManyRequests, status.Code >= 500:
		p.unanswered(err, now)
		j.putBack()
		j.goLast()
	case status.Code == http.StatusUnauthorized:
		p.unauthorized(err, now)
		j.putBack()
	case status.Code == http.StatusForbidden && !strings.Contains(status.Detail, "being terminated"):
		p.answered()
		p.refused(j, err, now)
	default:
		p.answered()
		p.rejected(j, status, now)
	}
	j.pod.note(now)
}

// succeeded takes over what the API has now.
func (p *Publisher) succeeded(j *job) {
	is := j.pod
	is.tries = 0
	p.allowed(rightOf(j.class, is.namespace))
	if j.class == ofEvents {
		is.sent[j.event.reason] = sent{j.name, j.event}
		return
	}
	if j.class == ofCondition {
		is.has, is.known = j.want, true
		return
	}
	if is.apiUID == "" && j.answer.Metadata.UID != is.uid && j.answer.Metadata.Annotations[annotationMirror] != is.uid {
		is.drop() // another pod has the name
		return
	}
	is.apiUID = j.answer.Metadata.UID
	is.has, is.known, is.look = j.answer.ours(), true, false
}

// allowed notes that something is allowed.
func (p *Publisher) allowed(r right) {
	d := p.denied[r]
	delete(p.denied, r)
	delete(p.denied, anyRight)
	if d.pause > deniedFirst && !d.trouble {
		p.log.Info("the ServiceAccount has the rights now that it lacked", "for", r.kind, "namespace", r.namespace)
	}
}

// anyRight stands for all rights of an accepted token.
var anyRight right

// unauthorized notes that the API does not accept the token.
func (p *Publisher) unauthorized(err error, now time.Time) {
	d, first := p.denied[anyRight].again(now, deniedMost)
	p.denied[anyRight], p.paused = d, d.until
	if !first {
		p.sayOnce("unauthorized", "Kubernetes shows nothing of the pods' nodes: the API does not take this ServiceAccount's token", "err", err, "next try in", d.pause)
	}
}

// refused notes that rights are missing, perhaps in one namespace alone.
func (p *Publisher) refused(j *job, err error, now time.Time) {
	r := rightOf(j.class, j.pod.namespace)
	d, first := p.denied[r].again(now, deniedMost)
	d.trouble = false
	p.denied[r] = d
	if !first {
		p.sayOnce(r.kind, "Kubernetes shows less of the pods' nodes than it could: the ServiceAccount lacks rights (deploy/components/kubernetes-status, or kubernetesStatus of the chart)",
			"for", r.kind, "namespace", r.namespace, "err", err)
	}
	j.putBack()
}

// troubled notes that the API answers and cannot do what was asked: a webhook that it must ask may be
// away. It is asked for some kinds of objects in some namespaces, and the rest is to go on.
func (p *Publisher) troubled(j *job, err error, now time.Time) {
	r := rightOf(j.class, j.pod.namespace)
	d, first := p.denied[r].again(now, troubleMost)
	d.trouble = true
	p.denied[r] = d
	if !first {
		p.sayOnce("trouble", "Kubernetes shows less of the pods' nodes than it could: the API fails, or a webhook that it asks", "for", r.kind, "namespace", r.namespace, "err", err)
	}
	j.putBack()
	j.goLast()
	if j.class != ofEvents {
		j.pod.after = d.until.Add(d.pause) // so that those which are less urgent have their turn
	}
}

// goLast has the others of the class come first: it may be this pod's alone that fails.
func (j *job) goLast() { j.pod.since[j.class] = time.Time{} }

// rejected notes a refusal of this job alone.
func (p *Publisher) rejected(j *job, status *kubeapi.StatusError, now time.Time) {
	is := j.pod
	switch {
	case status.Code == http.StatusNotFound && j.adds:
		j.putBack() // it has expired
		delete(is.sent, j.event.reason)
	case status.Code == http.StatusNotFound && j.class != ofEvents && is.tries < mirrorTries && is.want.Reason != ReasonStopped:
		is.tries++
		is.after = now.Add(mirrorTakes)
	case status.Code == http.StatusNotFound, status.Code == http.StatusForbidden:
		is.drop() // the pod is gone, or its namespace ends
	case isNamesake(status) && j.class != ofEvents && is.tries < podTries:
		// Another pod has the name, or it is a static pod, or another writer was faster.
		is.tries++
		is.known, is.look, is.apiUID = false, true, ""
		is.after = now.Add(time.Duration(is.tries-1) * time.Second)
	default:
		p.sayOnce("rejected", "Kubernetes shows less of a pod's node than it could: the API does not take what is to be said",
			"pod", is.namespace+"/"+is.name, "err", status)
		if j.class != ofEvents {
			is.dropCondition()
		}
	}
}

// isNamesake reports whether the UID may be that of another pod. That is a conflict by
// Kubernetes' conventions, and as of 1.37 a field that cannot be changed.
func isNamesake(status *kubeapi.StatusError) bool {
	return status.Code == http.StatusConflict || status.Code == http.StatusUnprocessableEntity
}

// drop forgets what is due of a pod that the API does not have.
func (p *pod) drop() {
	p.events = nil
	p.dropCondition()
}

// dropCondition leaves the condition as it is until there is news.
func (p *pod) dropCondition() {
	p.want, p.has, p.known, p.look, p.apiUID, p.tries = condition{}, condition{}, false, false, p.uid, 0
}

// putBack has an Event that was not sent be due again, unless there is a newer one of the
// same reason, or it is too old to be news.
func (j *job) putBack() {
	if j.class != ofEvents || time.Since(j.event.last) > eventLives {
		return
	}
	if j.adds {
		if was, ok := j.pod.sent[j.event.reason]; ok {
			j.event.first, j.event.count = j.event.last, j.event.count-was.count
		}
	}
	for i, due := range j.pod.events {
		if due.reason == j.event.reason {
			j.pod.events[i].first, j.pod.events[i].count = j.event.first, due.count+j.event.count
			return
		}
	}
	j.pod.events = append([]event{j.event}, j.pod.events...)
}

// unanswered begins an outage, or lets it go on.
func (p *Publisher) unanswered(err error, now time.Time) {
	o := &p.outage
	if !o.lasts {
		o.lasts, o.pause = true, outageFirst
		o.said = p.sayOnce("outage", "the Kubernetes API does not answer: Kubernetes does not show the state of the pods' nodes meanwhile; the nodes go on", "err", err)
	} else {
		o.pause = min(2*o.pause, outageMost)
	}
	p.paused = now.Add(o.pause)
}

// answered ends an outage. An API server may come back with older data than it had.
func (p *Publisher) answered() {
	if !p.outage.lasts {
		return
	}
	said := p.outage.said
	p.outage = outage{}
	if said {
		p.log.Info("the Kubernetes API answers again")
	}
	for _, is := range p.pods {
		if is.known {
			is.known, is.look = false, true
			is.note(time.Now())
		}
	}
}

// sayOnce logs a line of a kind, unless the log has had one lately. It reports whether it
// did.
func (p *Publisher) sayOnce(kind, text string, attrs ...any) bool {
	if at, ok := p.said[kind]; ok && time.Since(at) < saidAgain {
		return false
	}
	p.said[kind] = time.Now()
	p.log.Warn(text, attrs...)
	return true
}
