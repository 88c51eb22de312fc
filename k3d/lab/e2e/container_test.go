// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/control"
	"tailscale-nri/k3d/lab/internal/quantile"
	"tailscale-nri/k3d/lab/scene"
)

const (
	socketKey = "tailscale.com/socket"
	waitKey   = "tailscale.com/wait"
	policyKey = "tailscale.com/wait-policy"
	cli       = "/tailscale" // Tailscale's stock command line, in containers of cliContainer
)

// cliContainer is a container that has the stock command line of the program's own version.
func (s *stage) cliContainer(name string) lab.ContainerSpec {
	s.t.Helper()
	build, err := config(s.t, "any").BuildDir()
	s.must(err)
	binary, err := filepath.EvalSymlinks(filepath.Join(build, "bin", "tailscale-new"))
	s.must(err)
	return lab.ContainerSpec{Name: name, Args: []string{"sleep"}, Mounts: map[string]string{cli: binary}}
}

// idle is a container that listens nowhere.
func idle(name string) lab.ContainerSpec {
	return lab.ContainerSpec{Name: name, Args: []string{"sleep"}}
}

// runContainer runs it in the pod.
func (s *stage) runContainer(pod *scene.Pod, spec lab.ContainerSpec) (id string) {
	s.t.Helper()
	id, err := s.Lab.CRI().RunContainer(s.ctx, pod.ID, spec)
	s.must(err)
	return id
}

// exec runs a command in a container; an error is part of what it says.
func (s *stage) exec(id string, cmd ...string) string {
	out, err := s.Lab.CRI().Exec(s.ctx, id, cmd...)
	if err != nil {
		return out + err.Error()
	}
	return out
}

// TestSocket: the stock command line works in each container of a pod that asks for the socket, as any user, and shows the
// pod's own node; it changes nothing, and no other pod has a socket.
func TestSocket(t *testing.T) {
	t.Parallel()
	s := openServed(t, "socket")
	run := func(spec lab.PodSpec) *scene.Pod {
		pod, err := s.RunSandbox(s.ctx, spec)
		s.must(err)
		s.must(s.AwaitRunning(s.ctx, pod))
		return pod
	}
	web := run(lab.PodSpec{Name: "web", Annotations: scene.OptIn(socketKey, "true")})
	userNS := run(lab.PodSpec{Name: "userns", UserNS: true, Annotations: scene.OptIn(socketKey, "true", waitKey, "30s")})
	plain := run(lab.PodSpec{Name: "plain", Annotations: scene.OptIn()})

	nobody := s.cliContainer("nobody")
	nobody.User = 65534
	containers := map[string]*scene.Pod{
		s.runContainer(web, s.cliContainer("init")): web, s.runContainer(web, nobody): web,
		s.runContainer(userNS, s.cliContainer("main")): userNS,
	}
	see := func() {
		t.Helper()
		for id, pod := range containers {
			var st struct {
				BackendState string
				Self         struct{ ID, DNSName string }
			}
			out := s.exec(id, cli, "status", "--json")
			if err := json.Unmarshal([]byte(out), &st); err != nil || st.Self.ID != pod.Node().NodeID || st.BackendState != "Running" {
				t.Errorf("%s: status says %.300s (%v)", pod.FullName(), out, err)
			}
			if out := s.exec(id, cli, "ip", "-4"); strings.TrimSpace(out) != pod.IP4().String() {
				t.Errorf("%s: ip says %q, want %v", pod.FullName(), out, pod.IP4())
			}
			if out := s.exec(id, cli, "whois", "--json", plain.IP4().String()); !strings.Contains(out, plain.Node().NodeID) {
				t.Errorf("%s: whois says %.300s", pod.FullName(), out)
			}
			if out := s.exec(id, cli, "ping", "-c", "1", "--until-direct=false", plain.IP4().String()); !strings.Contains(out, "pong from") {
				t.Errorf("%s: ping says %q", pod.FullName(), out)
			}
		}
	}
	see()
	reader := s.runContainer(web, s.cliContainer("reader"))
	for text, args := range map[string][]string{
		web.IP4().String(): {"status"},
		"Daemon: ":         {"version", "--daemon"},
		"tailscaled_":      {"metrics"},
		"Report:":          {"netcheck"},
		web.IP6().String(): {"ip", "-6"},
		"via TSMP":         {"ping", "-c", "1", "--tsmp", plain.IP4().String()},
		"pong from":        {"ping", "-c", "1", "--icmp", plain.IP4().String()},
	} {
		if out := s.exec(reader, append([]string{cli}, args...)...); !strings.Contains(out, text) {
			t.Errorf("%q says %q, want %q in it", args, out, text)
		}
	}
	hostile := s.runContainer(web, s.cliContainer("hostile"))
	for _, args := range [][]string{
		{"set", "--shields-up"}, {"up"}, {"down"}, {"logout"}, {"login"}, {"switch", "--list"}, {"bugreport"}, {"wait"},
		{"ping", "-c", "1", "--peerapi", plain.IP4().String()}, {"serve", "--bg", "8080"}, {"funnel", "status"},
		{"file", "get", "/etc"}, {"cert", web.Node().DNSName}, {"debug", "prefs"}, {"dns", "status"}, {"nc", plain.IP4().String(), "22"},
	} {
		out := s.exec(hostile, append([]string{cli}, args...)...)
		t.Logf("%q says %q", args, out)
		if !strings.Contains(out, "tailscale-nri: a pod can read") {
			t.Errorf("%q says %q", args, out)
		}
	}
	// In its mount is the socket of its own pod alone, and nothing of the state next to it, where its keys are.
	for file, want := range map[string]string{
		"tailscaled.sock": "no such device or address", "../pod.json": "no such file", "pod.json": "no such file", "tailscaled.state": "no such file",
		"../" + userNS.Spec.UID + "/socket/tailscaled.sock": "no such file",
	} {
		out := s.exec(hostile, "/labtool", "cat", "/var/run/tailscale/"+file)
		t.Logf("%s: %q", file, out)
		if !strings.Contains(out, want) {
			t.Errorf("%s: %q, want %q", file, out, want)
		}
	}
	see() // all is as it was
	if out := s.exec(s.runContainer(plain, s.cliContainer("main")), cli, "status"); !strings.Contains(out, "failed to connect") {
		t.Errorf("a pod that did not ask has %q", out)
	}
	s.must(s.Plugin.End(s.ctx, unix.SIGTERM))
	for id := range containers {
		if out := s.exec(id, cli, "status"); !strings.Contains(out, "failed to connect") {
			t.Errorf("without the plugin status says %q", out)
		}
	}
	s.start()
	s.must(s.AwaitRunning(s.ctx, web))
	s.must(s.AwaitRunning(s.ctx, userNS))
	s.must(s.AwaitRunning(s.ctx, plain))
	see() // through the mounts that the containers have had before
	for _, pod := range []*scene.Pod{web, userNS, plain} {
		s.must(s.RemovePod(s.ctx, pod))
	}
	s.must(s.AwaitTraces(s.ctx, scene.Traces{}))
}

// TestWait: no container of a pod that waits starts before its node is up, whatever becomes of the plugin meanwhile,
// and no other pod is held up.
func TestWait(t *testing.T) {
	t.Parallel()
	s := openServed(t, "wait")
	s.outage(control.Refusing)
	run := func(name string, notes ...string) *scene.Pod {
		pod, err := s.RunSandbox(s.ctx, lab.PodSpec{Name: name, Annotations: scene.OptIn(notes...)})
		s.must(err)
		return pod
	}
	fails, starts := run("fails", waitKey, "2s"), run("starts", waitKey, "2s", policyKey, "start")
	waits := run("waits", waitKey, "90s", socketKey, "true")

	type outcome struct {
		at  time.Time
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		_, err := s.Lab.CRI().RunContainer(s.ctx, waits.ID, idle("init"))
		done <- outcome{time.Now(), err}
	}()
	_, err := s.Lab.CRI().RunContainer(s.ctx, fails.ID, idle("main"))
	for _, text := range []string{"tailscale-nri: pod default/fails: annotation tailscale.com/wait is \"2s\"", "the pod's node is not up after that (", `tailscale.com/wait-policy: "start"`} {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("want an error with %q, got %v", text, err)
		}
	}
	t.Log(err)
	begin := time.Now()
	s.runContainer(starts, idle("main"))
	if took := time.Since(begin); took < 2*time.Second {
		t.Errorf("it started after %v", took)
	}
	s.runContainer(run("other"), idle("main")) // nothing is held up

	s.must(s.Plugin.End(s.ctx, unix.SIGTERM))
	select {
	case o := <-done:
		t.Fatalf("the container did not wait for the plugin: %v", o.err)
	case <-time.After(time.Second):
	}
	s.start()
	s.must(s.Registered(s.ctx))
	up := time.Now()
	s.outage(control.Up)
	s.must(s.AwaitRunning(s.ctx, waits))
	select {
	case o := <-done:
		if o.err != nil || o.at.Before(up) {
			t.Errorf("the container that has waited: %v, %v after the outage", o.err, o.at.Sub(up))
		}
	case <-s.ctx.Done():
		t.Fatal("the container waits forever")
	}
	s.runContainer(waits, idle("main")) // of a node that is up
	s.must(s.AwaitRunning(s.ctx, fails))
	s.runContainer(fails, idle("again")) // as the kubelet does
	files, err := s.Lab.InNode(s.ctx, "ls", "-l", "/var/lib/tailscale-nri/.hook")
	if err != nil || strings.Count(files, "tailscale-nri-") != 1 || strings.Count(files, "plugin.sock") != 1 {
		t.Errorf("the hook's directory: %q, %v", files, err)
	}
}

// TestWaitGoneMeanwhile: a pod that is deleted while its container waits goes at once.
func TestWaitGoneMeanwhile(t *testing.T) {
	t.Parallel()
	s := openServed(t, "waitgone")
	s.outage(control.Refusing)
	for _, spec := range []lab.PodSpec{{Name: "web"}, {Name: "shared", SharePID: true}, {Name: "userns", UserNS: true}} {
		spec.Annotations = scene.OptIn(waitKey, "90s")
		s.endWaiting(spec)
	}
	s.outage(control.Up)
	s.must(s.AwaitTraces(s.ctx, scene.Traces{}))
}

// endWaiting deletes a pod as soon as its container waits.
func (s *stage) endWaiting(spec lab.PodSpec) {
	s.t.Helper()
	pod, err := s.RunSandbox(s.ctx, spec)
	s.must(err)
	done := make(chan error, 1)
	go func() {
		_, err := s.Lab.CRI().RunContainer(s.ctx, pod.ID, idle("main"))
		done <- err
	}()
	hooks := func() (n int) {
		out, err := s.Lab.InNode(s.ctx, "sh", "-c", `cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' ' '`)
		s.must(err)
		return strings.Count(out, `oci-hook {"podUID":"`+pod.Spec.UID+`"`)
	}
	s.eventually(func() error {
		if hooks() == 0 {
			return fmt.Errorf("no hook of %s waits", spec.Name)
		}
		return nil
	})
	begin := time.Now()
	s.must(s.RemovePod(s.ctx, pod))
	s.eventually(func() error {
		if n := hooks(); n > 0 {
			return fmt.Errorf("%d hooks of %s wait for a container that is gone", n, spec.Name)
		}
		return nil
	})
	took := time.Since(begin)
	s.t.Logf("%s is gone after %v", spec.Name, took.Round(time.Millisecond))
	if err := <-done; err == nil {
		s.t.Errorf("the container of %s has started", spec.Name)
	}
	if took > time.Minute {
		s.t.Errorf("%s went when the wait was over", spec.Name)
	}
}

// TestWaitNoExec: a state directory that nothing can be run from is the container's error, with what to do.
func TestWaitNoExec(t *testing.T) {
	t.Parallel()
	s := open(t, "noexec")
	for _, args := range [][]string{{"mkdir", "-p", "/var/lib/tailscale-nri"}, {"mount", "-t", "tmpfs", "-o", "noexec", "tmpfs", "/var/lib/tailscale-nri"}} {
		_, err := s.Lab.InNode(s.ctx, args[0], args[1:]...)
		s.must(err)
	}
	s.start()
	s.must(s.Registered(s.ctx))
	pod, err := s.RunSandbox(s.ctx, lab.PodSpec{Name: "web", Annotations: scene.OptIn(waitKey, "30s")})
	s.must(err)
	_, err = s.Lab.CRI().RunContainer(s.ctx, pod.ID, idle("main"))
	for _, text := range []string{"pod default/web", "mounted noexec", "TS_STATE_DIR", "remove the annotation"} {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("want an error with %q, got %v", text, err)
		}
	}
}

// TestWaitNoExecOnHost: the agent's own mount of the state directory shows no noexec where the host's has it, since the
// runtime makes it with the options of the volume alone. The error is the runtime's then, and in the guide.
func TestWaitNoExecOnHost(t *testing.T) {
	t.Parallel()
	s := openServed(t, "noexechost")
	pod, err := s.RunSandbox(s.ctx, lab.PodSpec{Name: "web", Annotations: scene.OptIn(waitKey, "30s")})
	s.must(err)
	s.must(s.AwaitRunning(s.ctx, pod))
	s.runContainer(pod, idle("before"))
	const dir, volume = "/var/lib/tailscale-nri", "/var/lib/noexec"
	for _, script := range []string{
		"mount --bind " + dir + " " + dir + " && mount -o remount,bind,noexec " + dir,
		"mkdir " + volume + " && mount -t tmpfs -o noexec tmpfs " + volume,
	} {
		_, err := s.Lab.InNode(s.ctx, "sh", "-c", script)
		s.must(err)
	}
	_, err = s.Lab.CRI().RunContainer(s.ctx, pod.ID, idle("main"))
	for _, text := range []string{"error running createRuntime hook #0: fork/exec " + dir + "/.hook/tailscale-nri-", ": permission denied"} {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("want an error with %q, got %v", text, err)
		}
	}
	other := s.runServing("other")
	agent := lab.ContainerSpec{Name: "agent", Args: []string{"sleep"}, Mounts: map[string]string{"/volume": volume}}
	mounts := s.exec(s.runContainer(other, agent), "/labtool", "cat", "/proc/self/mountinfo")
	for line := range strings.Lines(mounts) {
		if strings.Contains(line, " /volume ") && strings.Contains(line, "noexec") {
			t.Errorf("a container does see that a volume is noexec on the host: %s", line)
		}
	}
	if !strings.Contains(mounts, " /volume ") {
		t.Errorf("no volume in %q", mounts)
	}
}

// TestWaitCost: a wait for a node that is up adds 20 ms at most to the start of a container at the median. On a machine so
// busy that a start takes long without a wait, it may be half of that: to the start belongs that of one more program.
func TestWaitCost(t *testing.T) {
	t.Parallel()
	s := openServed(t, "waitcost")
	pods := map[string]*scene.Pod{}
	for name, notes := range map[string][]string{"plain": nil, "waits": {waitKey, "30s"}} {
		pod, err := s.RunSandbox(s.ctx, lab.PodSpec{Name: name, Annotations: scene.OptIn(notes...)})
		s.must(err)
		s.must(s.AwaitRunning(s.ctx, pod))
		pods[name] = pod
	}
	took := map[string][]time.Duration{}
	for i := range 20 {
		for name, pod := range pods {
			begin := time.Now()
			s.runContainer(pod, idle(fmt.Sprint("c", i)))
			took[name] = append(took[name], time.Since(begin))
		}
	}
	for name, all := range took {
		t.Logf("%s: p50 %v, p90 %v", name, quantile.Of(all, 0.5).Round(time.Millisecond), quantile.Of(all, 0.9).Round(time.Millisecond))
	}
	plain := quantile.Of(took["plain"], 0.5)
	if added, most := quantile.Of(took["waits"], 0.5)-plain, max(20*time.Millisecond, plain/2); added > most {
		t.Errorf("a wait for a node that is up adds %v to the start of a container, want %v at most", added, most)
	}
}

// TestResolvConfKept: a pod that does not ask for names has its resolv.conf byte for byte.
func TestResolvConfKept(t *testing.T) {
	t.Parallel()
	s := openServed(t, "resolvkept")
	plain, err := s.RunSandbox(s.ctx, lab.PodSpec{Name: "plain"})
	s.must(err)
	asks, err := s.RunSandbox(s.ctx, lab.PodSpec{Name: "asks", Annotations: scene.OptIn(waitKey, "30s", socketKey, "true")})
	s.must(err)
	own := filepath.Join(t.TempDir(), "resolv.conf")
	s.must(os.WriteFile(own, []byte("nameserver 192.0.2.1\n"), 0o644))
	read := func(pod *scene.Pod, spec lab.ContainerSpec) string {
		return s.exec(s.runContainer(pod, spec), "/labtool", "cat", "/etc/resolv.conf")
	}
	want := read(plain, idle("main"))
	if got := read(asks, idle("main")); got != want || !strings.Contains(got, "10.96.0.10") {
		t.Errorf("resolv.conf is %q, of a pod without us %q", got, want)
	}
	if got := read(asks, lab.ContainerSpec{Name: "own", Args: []string{"sleep"}, Mounts: map[string]string{"/etc/resolv.conf": own}}); got != "nameserver 192.0.2.1\n" {
		t.Errorf("a resolv.conf of the container's own is %q", got)
	}
}
