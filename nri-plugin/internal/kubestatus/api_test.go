// SPDX-License-Identifier: BSD-3-Clause

package kubestatus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/kubeapi"
	"tailscale-nri/nri-plugin/internal/kubeapi/apitest"
)

// cluster is an API server with pods, and a Publisher of the host n1, which has the rights
// that deploy/components/kubernetes-status gives.
type cluster struct {
	*apitest.Server
	t      *testing.T
	config kubeapi.Config
	client *kubeapi.Client
	*Publisher
}

// TestAPI is about one real API server: it takes long to start.
func TestAPI(t *testing.T) {
	a := apitest.Start(t)
	a.Grant("deploy/components/kubernetes-status/rbac.yaml")
	a.Grant("deploy/components/kubernetes-status/policy.yaml")
	for _, account := range []struct{ namespace, name string }{{apitest.Namespace, "tailscale-nri"}, {"default", "default"}} {
		a.Create("/api/v1/namespaces/"+account.namespace+"/serviceaccounts", "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: "+account.name+"}\n")
	}
	c := &cluster{Server: a, t: t}
	c.pod(apitest.Namespace, "agent", "n1", "")
	c.config = a.Config(a.BoundToken("tailscale-nri", "agent"))
	for _, tt := range []struct {
		name string
		test func(*cluster)
	}{
		{"the policy narrows the rights", narrowed},
		{"a condition and Events", shown},
		{"a patch that changes nothing", looks},
		{"a pod of the same name", namesake},
		{"a static pod", static},
		{"no rights", without},
		{"the server is away", away},
	} {
		t.Run(tt.name, func(t *testing.T) {
			scene := &cluster{Server: a, t: t, config: c.config}
			scene.publish(scene.config)
			tt.test(scene)
		})
	}
}

// publish starts a Publisher that ends with the test.
func (c *cluster) publish(cfg kubeapi.Config) {
	c.t.Helper()
	var err error
	if c.client, err = kubeapi.New(cfg); err != nil {
		c.t.Fatal(err)
	}
	publisher := New(Config{API: c.client, Host: "n1", Logger: slog.New(slog.NewTextHandler(c.t.Output(), nil)), Rates: UsualRates()})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); publisher.Run(ctx) }()
	c.Publisher = publisher
	c.t.Cleanup(func() { cancel(); <-ended })
}

// pod creates a pod on a host, and returns its UID.
func (c *cluster) pod(namespace, name, host, mirror string) string {
	c.t.Helper()
	notes, account := "{}", "default"
	if mirror != "" {
		notes = "{kubernetes.io/config.mirror: " + mirror + "}"
	}
	if namespace == apitest.Namespace {
		account = "tailscale-nri"
	}
	spec := "{nodeName: " + host + ", serviceAccountName: " + account + ", automountServiceAccountToken: false, containers: [{name: a, image: a}]}"
	if mirror != "" {
		spec = "{nodeName: " + host + ", automountServiceAccountToken: false, containers: [{name: a, image: a}]}"
	}
	c.Create("/api/v1/namespaces/"+namespace+"/pods", "apiVersion: v1\nkind: Pod\nmetadata: {name: "+name+", annotations: "+notes+"}\nspec: "+spec+"\n")
	return c.get(namespace, name).Metadata.UID
}

// seen is a pod as the API shows it.
type seen struct {
	Metadata struct {
		UID, ResourceVersion string
	}
	Status struct {
		Conditions []struct{ Type, Status, Reason, Message, LastTransitionTime string }
	}
}

func (c *cluster) get(namespace, name string) (pod seen) {
	c.t.Helper()
	code, text := c.Admin(http.MethodGet, "/api/v1/namespaces/"+namespace+"/pods/"+name, kubeapi.JSON, "")
	if err := json.Unmarshal([]byte(text), &pod); code != http.StatusOK || err != nil {
		c.t.Fatalf("reading the pod: %d %s", code, text)
	}
	return pod
}

// conditions are the pod's, by type.
func (c *cluster) conditions(name string) map[string]condition {
	out := map[string]condition{}
	for _, is := range c.get("default", name).Status.Conditions {
		if is.LastTransitionTime == "" {
			c.t.Errorf("the condition %s has no time of its last change", is.Type)
		}
		out[is.Type] = condition{is.Status, is.Reason, is.Message}
	}
	return out
}

// await waits until the pod's condition is that.
func (c *cluster) await(name string, want condition) {
	c.t.Helper()
	var got condition
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if got = c.conditions(name)[ConditionType]; got == want {
			return
		}
	}
	c.t.Fatalf("the condition is %+v, want %+v", got, want)
}

// events are the pod's, "type reason xCOUNT message".
func (c *cluster) events(uid string) (out []string) {
	c.t.Helper()
	code, text := c.Admin(http.MethodGet, "/api/v1/namespaces/default/events?fieldSelector=involvedObject.uid="+uid, kubeapi.JSON, "")
	var list struct {
		Items []struct {
			Type, Reason, Message                 string
			ReportingComponent, ReportingInstance string
			Count                                 int
		}
	}
	if err := json.Unmarshal([]byte(text), &list); code != http.StatusOK || err != nil {
		c.t.Fatalf("reading Events: %d %s", code, text)
	}
	for _, e := range list.Items {
		if e.ReportingComponent != "tailscale-nri" || e.ReportingInstance != "n1" {
			c.t.Errorf("an Event of %s, %s", e.ReportingComponent, e.ReportingInstance)
		}
		out = append(out, fmt.Sprintf("%s %s x%d %s", e.Type, e.Reason, e.Count, e.Message))
	}
	return out
}

func (c *cluster) awaitEvents(uid string, want ...string) {
	c.t.Helper()
	var got []string
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		missing := false
		got = c.events(uid)
		for _, line := range want {
			missing = missing || !strings.Contains(strings.Join(got, "\n"), line)
		}
		if !missing && len(got) == len(want) {
			return
		}
	}
	c.t.Fatalf("the Events are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
}

func (c *cluster) tell(name, uid string, news engine.News, reason string) {
	change := engine.Change{News: news, At: time.Now(), UID: uid, Namespace: "default", Pod: name, Hostname: name, DNSName: name + ".lab.ts.net", Reason: reason}
	if change.IsUp() {
		change.Addresses = []netip.Addr{netip.MustParseAddr("100.64.0.1")}
	}
	c.Tell(change)
}

// kubelets has the pod have conditions of its kubelet's.
func (c *cluster) kubelets(name string) {
	c.t.Helper()
	code, text := c.Admin(http.MethodPatch, "/api/v1/namespaces/default/pods/"+name+"/status", kubeapi.StrategicMerge,
		`{"status":{"podIP":"10.0.0.7","podIPs":[{"ip":"10.0.0.7"}],"phase":"Running","conditions":[{"type":"Ready","status":"True","lastTransitionTime":"2026-01-02T03:04:05Z"}]}}`)
	if code != http.StatusOK {
		c.t.Fatalf("patching as a kubelet: %d %s", code, text)
	}
}

// narrowed tries what pods/status alone would allow.
func narrowed(c *cluster) {
	uid := c.pod("default", "narrowed", "n1", "")
	c.kubelets("narrowed")
	c.pod("default", "elsewhere", "n2", "")
	try := func(pod, body string) error {
		return c.client.Do(c.t.Context(), kubeapi.Request{
			Method: http.MethodPatch, Path: path("default", "pods", pod) + "/status", Type: kubeapi.StrategicMerge, Body: json.RawMessage(body),
		})
	}
	const good = `{"status":{"conditions":[{"type":"tailscale.com/ready","status":"False"}]}}`
	// The server takes a moment to hear of a new policy.
	for deadline := time.Now().Add(20 * time.Second); try("elsewhere", good) == nil; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Fatal("a pod of another host can be written")
		}
	}
	for name, body := range map[string]string{
		"another condition":    `{"status":{"conditions":[{"type":"Ready","status":"False"}]}}`,
		"a new condition":      `{"status":{"conditions":[{"type":"example.com/x","status":"True"}]}}`,
		"no condition of ours": `{"status":{"conditions":[{"type":"Ready","$patch":"delete"}]}}`,
		"an address":           `{"status":{"podIP":"10.0.0.9","podIPs":[{"$patch":"replace"},{"ip":"10.0.0.9"}]}}`,
		"the phase":            `{"status":{"phase":"Failed"}}`,
		"a label":              `{"metadata":{"labels":{"app":"mine"}}}`,
		"an annotation":        `{"metadata":{"annotations":{"a":"b"}}}`,
		"a container":          `{"status":{"containerStatuses":[{"name":"a","ready":true,"restartCount":0,"image":"a","imageID":"a"}]}}`,
	} {
		if err := try("narrowed", body); !kubeapi.HasStatus(err, http.StatusForbidden) || !strings.Contains(err.Error(), "tailscale-nri writes n") {
			c.t.Errorf("%s: %v", name, err)
		}
	}
	if err := try("narrowed", good); err != nil {
		c.t.Errorf("the condition: %v", err)
	}
	if err := c.client.Do(c.t.Context(), kubeapi.Request{Method: http.MethodGet, Path: path("default", "pods", "narrowed")}); !kubeapi.HasStatus(err, http.StatusForbidden) {
		c.t.Errorf("reading the pod: %v", err)
	}
	c.tell("narrowed", uid, engine.NewsLeft, "")
}

// shown has the pod's kubelet write, too.
func shown(c *cluster) {
	uid := c.pod("default", "shown", "n1", "")
	c.kubelets("shown")
	before := c.conditions("shown")
	c.tell("shown", uid, engine.NewsJoined, "")
	c.await("shown", condition{"True", ReasonJoined, "shown.lab.ts.net 100.64.0.1"})
	c.tell("shown", uid, engine.NewsLost, "no key")
	c.await("shown", condition{"False", ReasonLost, "no key"})
	c.tell("shown", uid, engine.NewsJoined, "")
	c.awaitEvents(uid, "Normal TailnetJoined x2 the pod is in the tailnet: shown.lab.ts.net 100.64.0.1",
		"Warning TailnetLost x1 not in the tailnet any more: no key")
	c.await("shown", condition{"True", ReasonJoined, "shown.lab.ts.net 100.64.0.1"})
	after := c.conditions("shown")
	delete(after, ConditionType)
	if !maps.Equal(before, after) {
		c.t.Errorf("the kubelet's conditions are %v, were %v", after, before)
	}
}

// looks shows that a look is a read.
func looks(c *cluster) {
	uid := c.pod("default", "looks", "n1", "")
	c.tell("looks", uid, engine.NewsJoined, "")
	c.await("looks", condition{"True", ReasonJoined, "looks.lab.ts.net 100.64.0.1"})
	before := c.get("default", "looks")

	c.publish(c.config) // the next process
	begin := time.Now()
	c.tell("looks", uid, engine.NewsContinued, "")
	c.settled(uid)
	c.t.Logf("a look takes %v", time.Since(begin).Round(time.Millisecond))
	if after := c.get("default", "looks"); after.Metadata.ResourceVersion != before.Metadata.ResourceVersion {
		c.t.Errorf("a look has changed the pod from version %s to %s", before.Metadata.ResourceVersion, after.Metadata.ResourceVersion)
	}
	c.publish(c.config)
	c.tell("looks", uid, engine.NewsWaiting, "no key")
	c.await("looks", condition{"False", ReasonWaiting, "no key"})
}

// settled waits until nothing is due of the pod.
func (c *cluster) settled(uid string) {
	c.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		c.mu.Lock()
		is := c.pods[uid]
		done := is != nil && (is.known && is.has == is.want || is.want == condition{}) && len(is.events) == 0
		c.mu.Unlock()
		if done {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("the pod is %+v", is)
		}
	}
}

// namesake is there in place of the pod that there is news of.
func namesake(c *cluster) {
	c.pod("default", "namesake", "n1", "")
	c.tell("namesake", "6a4b1c9e-0000-4000-8000-000000000000", engine.NewsJoined, "")
	c.settled("6a4b1c9e-0000-4000-8000-000000000000")
	if got, ok := c.conditions("namesake")[ConditionType]; ok {
		c.t.Errorf("the namesake has %+v", got)
	}
}

// static is known to the runtime by another UID than to the API.
func static(c *cluster) {
	const uid = "0123456789abcdef0123456789abcdef"
	mirror := c.pod("default", "static-n1", "n1", uid)
	c.tell("static-n1", uid, engine.NewsJoined, "")
	c.await("static-n1", condition{"True", ReasonJoined, "static-n1.lab.ts.net 100.64.0.1"})
	c.awaitEvents(uid, "Normal TailnetJoined x1")
	if got := c.events(mirror); len(got) > 0 {
		c.t.Errorf("Events of the mirror pod's UID, which kubectl describe does not show: %q", got)
	}
}

// without has a ServiceAccount that may do nothing.
func without(c *cluster) {
	uid := c.pod("default", "without", "n1", "")
	c.publish(c.Config(apitest.OtherToken))
	c.tell("without", uid, engine.NewsJoined, "")
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c.mu.Lock()
		denied := len(c.denied)
		c.mu.Unlock()
		if denied == 2 {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("%d rights are known to be missing, want 2", denied)
		}
	}
}

// away has the server end, and come back.
func away(c *cluster) {
	uid := c.pod("default", "away", "n1", "")
	c.Stop()
	c.tell("away", uid, engine.NewsJoined, "")
	if err := c.client.Do(c.t.Context(), kubeapi.Request{Method: http.MethodGet, Path: "/"}); err == nil || errors.As(err, new(*kubeapi.StatusError)) {
		c.t.Fatalf("the server that was stopped says %v", err)
	}
	c.Restart()
	c.await("away", condition{"True", ReasonJoined, "away.lab.ts.net 100.64.0.1"})
	c.awaitEvents(uid, "Normal TailnetJoined x1")
}
