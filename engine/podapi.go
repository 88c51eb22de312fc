// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"
	"tailscale.com/ipn"
	"tailscale.com/net/netcheck"

	"tailscale-nri/engine/internal/podnet"
)

// Root of the host can look into each pod's node, whether or not the pod has a LocalAPI
// of its own. The cost is bounded as for one pod, for all pods together, since a person
// looks. But each node has its own turns, so that one that hangs does not block the
// others.

// NetNS names a pod's network namespace. It can be sent to another process of the same
// mount namespace, which reaches the same namespace by it or none.
type NetNS = podnet.Namespace

// PodView is what a command needs to look into a pod's node.
type PodView struct {
	NodeStatus
	NetNS NetNS `json:"netns,omitzero"` // of the sandbox, zero if it has none
}

// Netcheck is what a node has measured of the way to the tailnet, by its own UDP
// socket.
type Netcheck struct {
	Report *netcheck.Report `json:"report"` // the last, nil before the first
	// HomeDERP is the code of the region through which peers reach it, "" if it has
	// none.
	HomeDERP string `json:"homeDERP,omitempty"`
	Port     uint16 `json:"port"` // of the UDP socket, on the host
}

// PodAPIPrefix begins the paths of [Engine.PodAPI].
const PodAPIPrefix = "/v1/pods/"

// PodAPI returns a handler for root of this host. Below /v1/pods/NAMESPACE/POD it
// answers GET with a PodView, GET /netcheck with a Netcheck, and /localapi/v0/… as the
// LocalAPI of the pod's node does, for calls that read. A pod without a node here is
// 404, with a list of those that have one; a pod whose node cannot answer is 503.
func (e *Engine) PodAPI() http.Handler {
	return (&podAPI{e, newAPITurns().work, apiQueue + apiWrite}).handler()
}

func (a *podAPI) handler() http.Handler {
	mux := http.NewServeMux()
	pod := PodAPIPrefix + "{namespace}/{pod}"
	mux.HandleFunc("GET "+pod, a.view)
	mux.HandleFunc("GET "+pod+"/netcheck", a.netcheck)
	mux.HandleFunc(pod+"/localapi/", a.localAPI)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Each request of a connection sets its own.
		var deadline time.Time
		if !strings.HasSuffix(r.URL.Path, pathPing) { // a ping waits as long as its caller, and holds no turn
			deadline = time.Now().Add(a.patience)
		}
		_ = http.NewResponseController(w).SetWriteDeadline(deadline) // an error means a writer without a connection
		mux.ServeHTTP(w, r)
	})
}

type podAPI struct {
	e        *Engine
	work     *rate.Limiter
	patience time.Duration // how long a slow reader may hold a turn of the node
}

// turns returns the turns of root's looks into the node.
func (a *podAPI) turns(n *node) *apiTurns { return &apiTurns{a.work, n.serving.looks} }

func (a *podAPI) view(w http.ResponseWriter, r *http.Request) {
	if v, _, ok := a.find(w, r); ok {
		answerJSON(w, v)
	}
}

func (a *podAPI) netcheck(w http.ResponseWriter, r *http.Request) {
	_, n, ok := a.find(w, r)
	if !ok {
		return
	}
	s := n.sessionOrNil()
	if s == nil {
		http.Error(w, "tailscale-nri: the pod's node is not up", http.StatusServiceUnavailable)
		return
	}
	leave, err := a.turns(n).enter(r.Context(), call{endpoint: endpoint{cost: costSmall, large: true}})
	if err != nil {
		http.Error(w, tooMany, http.StatusTooManyRequests)
		return
	}
	defer leave()
	sock := s.b.sys.MagicSock.Get()
	c := Netcheck{Report: sock.GetLastNetcheckReport(r.Context()), Port: sock.LocalPort()}
	if st := s.b.StatusWithoutPeers(); st.Self != nil {
		c.HomeDERP = st.Self.Relay
	}
	answerJSON(w, c)
}

func (a *podAPI) localAPI(w http.ResponseWriter, r *http.Request) {
	v, n, ok := a.find(w, r)
	if !ok {
		return
	}
	if n == nil {
		http.Error(w, "tailscale-nri: the pod has no node: "+v.Reason, http.StatusServiceUnavailable)
		return
	}
	// The same request without the pod. One that was not sent as it was understood
	// keeps its prefix, and is refused.
	prefix := PodAPIPrefix + v.Namespace + "/" + v.Pod
	inner := r.Clone(r.Context())
	inner.URL.Path = strings.TrimPrefix(r.URL.Path, prefix)
	inner.RequestURI = strings.TrimPrefix(r.RequestURI, prefix)
	a.turns(n).answer(w, inner, rootMayCall(), n)
}

// maxListed is how many pods the answer for an unknown one names.
const maxListed = 10

// find returns the pod that the path names, and its node, nil for a pod that was
// refused one. If the pod does not exist it writes the answer.
func (a *podAPI) find(w http.ResponseWriter, r *http.Request) (PodView, *node, bool) {
	namespace, name := r.PathValue("namespace"), r.PathValue("pod")
	if v, n, ok := a.e.podNamed(namespace, name); ok {
		return v, n, true
	}
	var names []string
	for _, s := range a.e.Status() {
		names = append(names, s.Namespace+"/"+s.Pod)
	}
	names = slices.Compact(names) // sorted
	there := "no pod here has one"
	if len(names) > 0 {
		there = "there are " + strings.Join(names[:min(len(names), maxListed)], ", ")
		if more := len(names) - maxListed; more > 0 {
			there += fmt.Sprintf(" and %d more", more)
		}
	}
	http.Error(w, fmt.Sprintf("no pod %.300s on this host has a tailnet node: %s", namespace+"/"+name, there), http.StatusNotFound)
	return PodView{}, nil, false
}

// podNamed returns the pod of that name. If several have it, since one is still leaving
// for instance, it is the one whose sandbox lives, and of these the latest.
func (e *Engine) podNamed(namespace, name string) (PodView, *node, bool) {
	var found *node
	var best NodeStatus
	lives := func(s NodeStatus) int {
		if s.State == Running || s.State == Pending {
			return 1
		}
		return 0
	}
	for _, n := range e.snapshot() {
		s := n.brief()
		if s.Namespace != namespace || s.Pod != name {
			continue
		}
		if found == nil || cmp.Or(cmp.Compare(lives(s), lives(best)), s.AttachedAt.Compare(best.AttachedAt)) > 0 {
			found, best = n, s
		}
	}
	if found != nil {
		return PodView{found.snapshot(), found.record().NetNS}, found, true
	}
	for _, s := range e.refused() {
		if s.Namespace == namespace && s.Pod == name {
			return PodView{NodeStatus: s}, nil, true
		}
	}
	return PodView{}, nil, false
}

// sessionOrNil is runningSession for a node that may be nil.
func (n *node) sessionOrNil() *session {
	if n == nil {
		return nil
	}
	return n.runningSession()
}

// answerPrefs is localapi's servePrefs without what belongs to the node's keys.
func answerPrefs(w http.ResponseWriter, b *backend) {
	var p ipn.Prefs
	if view := b.Prefs(); view.Valid() {
		p = *view.AsStruct()
	}
	p.Persist = nil
	answerJSON(w, p.View())
}

func answerJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "\t")
	_ = e.Encode(v) // the reader has gone
}
