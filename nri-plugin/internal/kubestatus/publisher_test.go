// SPDX-License-Identifier: BSD-3-Clause

package kubestatus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/kubeapi"
)

// recorder is an API that has each pod, and keeps what it was asked.
type recorder struct {
	mu       sync.Mutex
	requests []kubeapi.Request
	at       []time.Time
	takes    time.Duration
	fail     func(kubeapi.Request) error // nil does not
	has      condition                   // that a pod which is looked at has
}

func (r *recorder) Do(ctx context.Context, q kubeapi.Request) error {
	select {
	case <-time.After(r.takes):
	case <-ctx.Done():
		return ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests, r.at = append(r.requests, q), append(r.at, time.Now())
	if r.fail != nil {
		if err := r.fail(q); err != nil {
			return err
		}
	}
	if a, ok := q.Answer.(*answer); ok {
		a.Metadata.UID, _ = q.Body.(object)["metadata"].(object)["uid"].(string)
		a.Status.Conditions = append(a.Status.Conditions, struct {
			Type string
			condition
		}{ConditionType, r.has})
	}
	return nil
}

func (r *recorder) setFail(fail func(kubeapi.Request) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = fail
}

// times are those of the requests.
func (r *recorder) times() []time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.at)
}

func (r *recorder) setHas(has condition) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.has = has
}

// logBuffer is a log that is read while it is written.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// lines are the requests, in short.
func (r *recorder) lines() (out []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, q := range r.requests {
		out = append(out, short(q))
	}
	return out
}

func (r *recorder) all() []kubeapi.Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.requests)
}

func (r *recorder) count(prefix string) (n int) {
	for _, line := range r.lines() {
		if strings.HasPrefix(line, prefix) {
			n++
		}
	}
	return n
}

// short is what a request is for.
func short(q kubeapi.Request) string {
	body := q.Body.(object)
	switch {
	case q.Method == http.MethodPost:
		return fmt.Sprintf("event %s x%d %s", body["reason"], body["count"], body["message"])
	case strings.Contains(q.Path, "/events/"):
		return fmt.Sprintf("event x%d", body["count"])
	case body["status"] == nil:
		return "look"
	}
	c := body["status"].(object)["conditions"].([]object)[0]
	moved := ""
	if c["lastTransitionTime"] != nil {
		moved = " moved"
	}
	return fmt.Sprintf("condition %s %s%s: %s", c["status"], c["reason"], moved, c["message"])
}

// bench is a Publisher at work in a bubble of its own time.
type bench struct {
	*Publisher
	api  *recorder
	log  *logBuffer
	stop func()
}

// play runs test with a Publisher.
func play(t *testing.T, test func(t *testing.T, b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{api: &recorder{takes: 5 * time.Millisecond}, log: &logBuffer{}}
		b.Publisher = New(Config{API: b.api, Host: "n1", Logger: slog.New(slog.NewTextHandler(b.log, nil)), Rates: UsualRates()})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); b.Run(ctx) }()
		b.stop = func() { cancel(); <-ended }
		defer b.stop()
		test(t, b)
	})
}

// told are news of a pod.
func told(pod string, news engine.News, reason string) engine.Change {
	c := engine.Change{
		News: news, At: time.Now(), UID: "uid-" + pod, Namespace: "default", Pod: pod, Hostname: "k8s-default-" + pod,
		DNSName: "k8s-default-" + pod + ".lab.ts.net", Reason: reason,
	}
	if c.IsUp() {
		c.Addresses = []netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd7a::1")}
	}
	return c
}

// expect fails unless that is all the API was asked since the last call.
func (b *bench) expect(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	got := b.api.lines()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("the API was asked\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	b.api.mu.Lock()
	defer b.api.mu.Unlock()
	b.api.requests, b.api.at = nil, nil
}

const (
	known      = "k8s-default-a.lab.ts.net 100.64.0.1 fd7a::1"
	isTrue     = "condition True TailnetJoined"
	joinedLine = "event TailnetJoined x1 the pod is in the tailnet: " + known
)

// A pod's life, as the API hears of it.
func TestLife(t *testing.T) {
	play(t, func(t *testing.T, b *bench) {
		tell := func(news engine.News, reason string) {
			b.Tell(told("a", news, reason))
			time.Sleep(time.Second)
		}
		tell(engine.NewsJoined, "")
		b.expect(t, isTrue+" moved: "+known, joinedLine)
		tell(engine.NewsNameTaken, "")
		b.expect(t, "event TailnetNameTaken x1 the tailnet gave the node another name than it asked for: a device with that name exists: asked for k8s-default-a, given k8s-default-a")
		tell(engine.NewsLost, "no way out")
		b.expect(t, "condition False TailnetLost moved: no way out", "event TailnetLost x1 not in the tailnet any more: no way out")
		tell(engine.NewsLost, "no key")
		b.expect(t, "condition False TailnetLost: no key", "event TailnetLost x1 not in the tailnet any more: no key")
		tell(engine.NewsReregistered, "")
		b.expect(t, isTrue+" moved: "+known,
			"event TailnetReregistered x1 the pod is in the tailnet as another device, or with other addresses: "+known)
		tell(engine.NewsLost, "no key")
		b.expect(t, "condition False TailnetLost moved: no key", "event x2")
		tell(engine.NewsJoined, "")
		b.expect(t, isTrue+" moved: "+known, "event x2")
		tell(engine.NewsRenamed, "")
		b.expect(t, "event TailnetRenamed x1 the pod's name in the tailnet is another one now: "+known)

		tell(engine.NewsStopped, "")
		b.expect(t)
		time.Sleep(settle)
		b.expect(t, "condition False TailnetStopped moved: the pod's sandbox has ended")
		tell(engine.NewsJoined, "")
		b.expect(t, isTrue+" moved: "+known, "event x3")
		tell(engine.NewsStopped, "") // for another sandbox, which is there at once
		tell(engine.NewsJoined, "")
		b.expect(t, "event x4")
		time.Sleep(2 * settle)
		b.expect(t)
		tell(engine.NewsLeft, "")
		b.expect(t)
		if len(b.pods) != 0 {
			t.Errorf("%d pods are remembered", len(b.pods))
		}
	})
}

// A process that takes over looks, and writes what is not so.
func TestContinued(t *testing.T) {
	for _, tt := range []struct {
		name string
		has  condition
		want []string
	}{
		{"as it was", condition{"True", ReasonJoined, known}, []string{"look"}},
		{"other words", condition{"True", ReasonJoined, "old words"}, []string{"look", isTrue + ": " + known}},
		{"wrong", condition{"False", ReasonLost, "no key"}, []string{"look", isTrue + " moved: " + known}},
		{"none", condition{}, []string{"look", isTrue + " moved: " + known}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			play(t, func(t *testing.T, b *bench) {
				b.api.setHas(tt.has)
				b.Tell(told("a", engine.NewsContinued, ""))
				time.Sleep(time.Minute)
				b.expect(t, tt.want...)
			})
		})
	}
	play(t, func(t *testing.T, b *bench) {
		b.api.setHas(condition{"True", ReasonJoined, known})
		b.Tell(told("a", engine.NewsWaiting, "no key"))
		time.Sleep(time.Minute)
		b.expect(t, "event TailnetWaiting x1 not in the tailnet yet, trying again: no key", "look", "condition False TailnetWaiting moved: no key")
	})
}

// A control plane that comes and goes, for 200 pods and five minutes, twice a second.
func TestFlood(t *testing.T) {
	play(t, func(t *testing.T, b *bench) {
		const pods, lasts = 200, 5 * time.Minute
		begin := time.Now()
		for i := 0; time.Since(begin) < lasts; i++ {
			news := engine.NewsJoined
			if i%2 == 1 {
				news = engine.NewsLost
			}
			for pod := range pods {
				b.Tell(told(fmt.Sprint(pod), news, fmt.Sprintf("reason %d", i)))
			}
			time.Sleep(500 * time.Millisecond)
		}
		synctest.Wait()
		asked := len(b.api.lines())
		if most := int(lasts.Seconds()*10) + 50; asked > most || asked < most/2 {
			t.Errorf("%d requests, the host has %d", asked, most)
		}
		at := b.api.times()
		for i := range at {
			if second := i + 70; second < len(at) && at[second].Sub(at[i]) < time.Second {
				t.Fatalf("more than 70 requests within a second, from request %d on", i)
			}
		}
		for pod := range pods {
			b.Tell(told(fmt.Sprint(pod), engine.NewsJoined, ""))
		}
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		last := map[string]string{}
		b.stop() // so that nothing is written any more
		for _, q := range b.api.requests {
			if strings.HasPrefix(short(q), "condition") {
				last[q.Path] = short(q)
			}
		}
		for path, line := range last {
			if !strings.HasPrefix(line, isTrue) {
				t.Errorf("the last of %s is %s", path, line)
			}
		}
		if len(last) != pods {
			t.Errorf("%d pods have a condition", len(last))
		}
		for _, is := range b.pods {
			if n := len(is.events); n > 2 {
				t.Errorf("%d Events wait for pod %s", n, is.name)
			}
		}
		t.Logf("%d requests in %v", asked, lasts)
	})
}

// One pod alone, over an hour: fewer Events, and its condition in the end.
func TestOnePodFlaps(t *testing.T) {
	play(t, func(t *testing.T, b *bench) {
		for i := range 3600 {
			b.Tell(told("a", engine.NewsLost, fmt.Sprintf("reason %d", i)))
			time.Sleep(500 * time.Millisecond)
			b.Tell(told("a", engine.NewsJoined, ""))
			time.Sleep(500 * time.Millisecond)
		}
		if n := b.api.count("event"); n < 60 || n > 71 {
			t.Errorf("%d requests for Events in an hour", n)
		}
		if n := b.api.count("condition"); n > 730 {
			t.Errorf("%d conditions in an hour", n)
		}
	})
}

// While the API is away nothing is lost that is so, and little is asked.
func TestOutage(t *testing.T) {
	for _, failure := range []error{errors.New("connection refused"), &kubeapi.StatusError{Code: 503}, &kubeapi.StatusError{Code: 429}} {
		play(t, func(t *testing.T, b *bench) {
			b.Tell(told("z", engine.NewsJoined, ""))
			time.Sleep(time.Second)
			b.expect(t, isTrue+" moved: "+strings.ReplaceAll(known, "-a.", "-z."), strings.ReplaceAll(joinedLine, "-a.", "-z."))
			b.api.setFail(func(kubeapi.Request) error { return failure })
			b.Tell(told("a", engine.NewsWaiting, "no key"))
			time.Sleep(20 * time.Minute)
			b.Tell(told("a", engine.NewsJoined, ""))
			time.Sleep(10 * time.Minute)
			if n := len(b.api.lines()); n > 40 {
				t.Errorf("%v: %d tries in half an hour", failure, n)
			}
			b.api.setFail(nil)
			b.api.setHas(condition{"True", ReasonJoined, "of long ago"})
			time.Sleep(2 * time.Minute)
			all := strings.Join(b.api.lines(), "\n")
			for _, want := range []string{isTrue + ": " + known, "event TailnetWaiting x1", joinedLine, isTrue + ": " + strings.ReplaceAll(known, "-a.", "-z.")} {
				if !strings.Contains(all, want) {
					t.Errorf("%v: nothing of %q in\n%s", failure, want, all)
				}
			}
			if away, back := strings.Count(b.log.String(), "does not answer"), strings.Count(b.log.String(), "answers again"); away != 1 || back != 1 {
				t.Errorf("%v: the log is %s", failure, b.log)
			}
		})
	}
}

// What the ServiceAccount may not do in one namespace is tried ever less often, and the
// rest goes on.
func TestForbidden(t *testing.T) {
	play(t, func(t *testing.T, b *bench) {
		forbidden := &kubeapi.StatusError{Code: http.StatusForbidden, Reason: "Forbidden", Detail: `cannot patch resource "pods/status"`}
		b.api.setFail(func(q kubeapi.Request) error {
			if strings.HasSuffix(q.Path, "/status") && strings.Contains(q.Path, "/default/") {
				return forbidden
			}
			return nil
		})
		for i := range 50 {
			b.Tell(told(fmt.Sprint(i), engine.NewsJoined, ""))
		}
		elsewhere := told("a", engine.NewsJoined, "")
		elsewhere.Namespace = "other"
		b.Tell(elsewhere)
		time.Sleep(time.Second)
		if b.log.String() != "" {
			t.Errorf("after the first refusal the log is %s", b.log)
		}
		time.Sleep(time.Hour)
		if n := b.api.count("condition"); n < 10 || n > 15 {
			t.Errorf("%d conditions were tried within an hour", n)
		}
		if n := b.api.count("event"); n != 51 {
			t.Errorf("%d Events", n)
		}
		if n := strings.Count(b.log.String(), "lacks rights"); n != 1 || !strings.Contains(b.log.String(), "kubernetes-status") {
			t.Errorf("the log is %s", b.log)
		}
		b.api.setFail(nil)
		time.Sleep(11 * time.Minute)
		if n := b.api.count("condition"); n < 60 || !strings.Contains(b.log.String(), "has the rights now") {
			t.Errorf("%d conditions with the rights, the log is %s", n, b.log)
		}
	})
	play(t, func(t *testing.T, b *bench) {
		b.api.setFail(func(kubeapi.Request) error { return &kubeapi.StatusError{Code: http.StatusUnauthorized} })
		for i := range 50 {
			b.Tell(told(fmt.Sprint(i), engine.NewsJoined, ""))
		}
		time.Sleep(time.Hour)
		if n := len(b.api.lines()); n < 10 || n > 14 || strings.Count(b.log.String(), "does not take this ServiceAccount's token") != 1 {
			t.Errorf("%d requests within an hour with a token that is not taken", n)
		}
	})
}

// What fails in one namespace alone, as where a webhook that the API must ask is away, keeps
// nothing else from being shown, of whatever class, and is tried again.
func TestTrouble(t *testing.T) {
	play(t, func(t *testing.T, b *bench) {
		b.api.setFail(func(q kubeapi.Request) error {
			if strings.Contains(q.Path, "/hooked/") || strings.Contains(q.Path, "/pods/7/") {
				return &kubeapi.StatusError{Code: http.StatusInternalServerError, Reason: "InternalError"}
			}
			return nil
		})
		for i := range 20 {
			hooked := told(fmt.Sprint("h", i), engine.NewsJoined, "")
			hooked.Namespace = "hooked"
			b.Tell(hooked)
			b.Tell(told(fmt.Sprint(i), engine.NewsJoined, ""))
		}
		b.Tell(told("late", engine.NewsContinued, ""))
		time.Sleep(time.Minute)
		fine := map[string]int{}
		for _, q := range b.api.all() {
			if strings.Contains(q.Path, "/default/") && !strings.Contains(q.Path, "/pods/7/") {
				fine[strings.Fields(short(q))[0]]++
			}
		}
		if fine["condition"] < 19 || fine["event"] != 20 || fine["look"] != 1 {
			t.Errorf("of what does not fail the API was asked %v", fine)
		}
		time.Sleep(time.Hour)
		if n := b.api.count(""); n > 330 {
			t.Errorf("%d requests in an hour", n)
		}
		if n := strings.Count(b.log.String(), "or a webhook that it asks"); n > 2 || n < 1 || strings.Contains(b.log.String(), "does not answer") || strings.Contains(b.log.String(), "lacks") {
			t.Errorf("the log is %s", b.log)
		}
		b.api.setFail(nil)
		time.Sleep(2 * time.Minute)
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, is := range b.pods {
			if len(is.events) > 0 || !is.known || is.has != is.want && is.name != "late" {
				t.Errorf("of %s/%s something is due still", is.namespace, is.name)
			}
		}
	})
}

// A pod's name may be as long as the Event's, and its Event's is a name.
func TestEventName(t *testing.T) {
	play(t, func(t *testing.T, b *bench) {
		c := told(strings.Repeat("a", 235)+"-"+strings.Repeat("b", 17), engine.NewsJoined, "")
		b.Tell(c)
		time.Sleep(time.Second)
		for _, q := range b.api.all() {
			if q.Method != http.MethodPost {
				continue
			}
			name := q.Body.(object)["metadata"].(object)["name"].(string)
			if len(name) > 253 || strings.Contains(name, "-.") {
				t.Errorf("an Event's name is %s", name)
			}
		}
	})
}

// A pod that is gone, an Event that has expired, and what the API does not take.
func TestRejected(t *testing.T) {
	status := func(code int) func(kubeapi.Request) error {
		return func(kubeapi.Request) error { return &kubeapi.StatusError{Code: code} }
	}
	play(t, func(t *testing.T, b *bench) {
		b.api.setFail(status(http.StatusNotFound))
		b.Tell(told("a", engine.NewsJoined, ""))
		time.Sleep(time.Hour)
		if n := len(b.api.lines()); n > 4 {
			t.Errorf("%d requests for a pod that is gone:\n%s", n, strings.Join(b.api.lines(), "\n"))
		}
	})
	for _, code := range []int{http.StatusConflict, http.StatusUnprocessableEntity} {
		play(t, func(t *testing.T, b *bench) {
			b.api.setFail(status(code))
			b.Tell(told("a", engine.NewsJoined, ""))
			time.Sleep(time.Hour)
			if n := len(b.api.lines()); n > podTries+3 {
				t.Errorf("%d requests for a pod that answers %d", n, code)
			}
		})
	}
	play(t, func(t *testing.T, b *bench) {
		b.Tell(told("a", engine.NewsJoined, ""))
		time.Sleep(time.Second)
		b.expect(t, isTrue+" moved: "+known, joinedLine)
		b.api.setFail(func(q kubeapi.Request) error {
			if strings.Contains(q.Path, "/events/") {
				return &kubeapi.StatusError{Code: http.StatusNotFound}
			}
			return nil
		})
		b.Tell(told("a", engine.NewsJoined, ""))
		time.Sleep(time.Minute)
		b.expect(t, "event x2", joinedLine)
		b.api.setFail(status(http.StatusUnprocessableEntity))
		b.Tell(told("a", engine.NewsLost, "no key"))
		time.Sleep(time.Hour)
		if n := len(b.api.lines()); n > podTries+4 || !strings.Contains(b.log.String(), "pod=default/a") {
			t.Errorf("%d requests, the log is %s", n, b.log)
		}
	})
}

// At the end of the process the Events go out that can, and nothing waits for long.
func TestFlush(t *testing.T) {
	play(t, func(t *testing.T, b *bench) {
		b.stop()
		b.Tell(told("a", engine.NewsJoined, ""))
		b.Tell(told("a", engine.NewsLost, "no key"))
		b.Flush(t.Context())
		b.expect(t, joinedLine, "event TailnetLost x1 not in the tailnet any more: no key")

		b.api.takes = time.Hour
		b.Tell(told("a", engine.NewsWaiting, "no key"))
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		begin := time.Now()
		b.Flush(ctx)
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

func TestClip(t *testing.T) {
	long := strings.Repeat("ä", maxText)
	if got := clip(long); len(got) > 1024 || !strings.HasSuffix(got, "ä…") {
		t.Errorf("clipped to %d bytes, the end is %q", len(got), got[len(got)-8:])
	}
}
