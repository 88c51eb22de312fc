// SPDX-License-Identifier: BSD-3-Clause

package lab

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"tailscale-nri/k3d/lab/internal/proc"
	"tailscale-nri/k3d/lab/internal/wait"
)

// testConfig is a lab apart from one that may be running.
func testConfig(t *testing.T) Config {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	return Config{Name: "tsnri-lt", Dir: "/run/tsnri-lt", Logger: log}
}

// upLab is a lab that ends with the test, with a check that nothing of it remains.
func upLab(t *testing.T) *Lab {
	t.Helper()
	lab, err := Up(t.Context(), testConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { downLab(t, lab) })
	return lab
}

func downLab(t *testing.T, lab *Lab) {
	t.Helper()
	if t.Failed() {
		log, _ := os.ReadFile(lab.Containerd().LogPath())
		t.Logf("containerd's log:\n%s", log)
	}
	held, begun := namespaceInodes(t, lab), sinceBoot(t)
	if err := lab.Down(); err != nil {
		t.Error(err)
	}
	assertNothingRemains(t, lab.cfg)
	for _, pid := range holders(held) {
		// The kernel gives the number of a namespace that is gone to the next one, such as that of another lab.
		if start := startOf(pid); start > 0 && start <= begun {
			t.Errorf("process %s still holds a namespace of the lab", describe([]int{pid}))
		}
	}
}

func assertNothingRemains(t *testing.T, cfg Config) {
	t.Helper()
	left, err := Remains(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if len(left) > 0 {
		t.Errorf("left after Down: %q", left)
	}
	assertMachineUntouched(t)
}

// assertMachineUntouched looks for the lab's names and addresses in the machine's own network namespace. Whole lists
// cannot be compared: other tests run at the same time.
func assertMachineUntouched(t *testing.T) {
	t.Helper()
	for _, args := range [][]string{{"-o", "link"}, {"-o", "addr"}, {"route", "show", "table", "all"}, {"-6", "route", "show", "table", "all"}, {"rule"}} {
		out, err := exec.Command("ip", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
		for _, ours := range []string{bridgeName, "cni0", "to-node", "172.30.69.", "10.86.0.", "fd00:6e72", "db8:6e72"} {
			if strings.Contains(string(out), ours) {
				t.Errorf("the machine's `ip %s` shows %q:\n%s", strings.Join(args, " "), ours, out)
			}
		}
	}
}

// namespaceInodes are the link targets ("net:[4026532287]") of the lab's namespaces and of its processes'.
func namespaceInodes(t *testing.T, lab *Lab) []string {
	t.Helper()
	own := namespaceLinks("self")
	var inodes []string
	for _, pid := range lab.cfg.processes().pids() {
		for _, link := range namespaceLinks(itoa(pid)) {
			if !slices.Contains(own, link) {
				inodes = append(inodes, link)
			}
		}
	}
	return inodes
}

// holders are all processes that have a thread in one of these namespaces.
func holders(inodes []string) (pids []int) {
	tasks, _ := filepath.Glob("/proc/[0-9]*/task/[0-9]*")
	for _, task := range tasks {
		links := namespaceLinks(strings.TrimPrefix(task, "/proc/"))
		if slices.ContainsFunc(links, func(l string) bool { return slices.Contains(inodes, l) }) {
			pids = append(pids, atoi(strings.Split(task, "/")[2]))
		}
	}
	return slices.Compact(pids)
}

func namespaceLinks(task string) (links []string) {
	for _, kind := range []string{"net", "mnt"} {
		if link, err := os.Readlink(filepath.Join("/proc", task, "ns", kind)); err == nil {
			links = append(links, link)
		}
	}
	return links
}

// sinceBoot is the time since the machine's start.
func sinceBoot(t *testing.T) time.Duration {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		t.Fatal(err)
	}
	return time.Duration(now.Nano())
}

// startOf is when a process was started, by sinceBoot; 0 for one that is gone.
func startOf(pid int) time.Duration {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return 0
	}
	stat, err := p.Stat()
	if err != nil {
		return 0
	}
	return time.Duration(stat.Starttime) * proc.Tick
}

// runTool runs a pod with one container of labtool.
func runTool(t *testing.T, lab *Lab, spec PodSpec) (pod Pod, container string) {
	t.Helper()
	id, err := lab.CRI().RunPod(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	container, err = lab.CRI().RunContainer(t.Context(), id, ContainerSpec{Name: "tool"})
	if err != nil {
		t.Fatal(err)
	}
	pod, err = lab.CRI().PodStatus(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return pod, container
}

// eventually waits for check to return nil, for at most a minute.
func eventually(t *testing.T, what string, check func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := wait.Until(ctx, pollInterval, check); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// page is what labtool's HTTP server says.
type page struct {
	Host, Local, Remote string
	Addrs               map[string][]string
}

// fetch asks a pod's HTTP server from inside the node, over each of the pod's addresses.
func fetch(t *testing.T, lab *Lab, pod Pod) (pages []page) {
	t.Helper()
	for _, ip := range pod.IPs {
		if strings.Contains(ip, ":") {
			ip = "[" + ip + "]"
		}
		eventually(t, "fetching from "+ip, func(ctx context.Context) error {
			out, err := lab.InNode(ctx, lab.ToolPath(), "get", "http://"+ip+":8080/")
			if err != nil {
				return err
			}
			var p page
			pages = append(pages, p)
			return json.Unmarshal([]byte(out), &pages[len(pages)-1])
		})
	}
	return pages
}

func TestPod(t *testing.T) {
	lab := upLab(t)
	spec := PodSpec{Name: "web", Annotations: map[string]string{"example.com/kept": "yes"}}
	pod, container := runTool(t, lab, spec)

	if want := 2; hasIPv6() && len(pod.IPs) != want {
		t.Errorf("pod has addresses %v, want %d", pod.IPs, want)
	}
	for i, p := range fetch(t, lab, pod) {
		if p.Host != "web" || !strings.Contains(p.Local, pod.IPs[i]) {
			t.Errorf("asked %s, answered %+v", pod.IPs[i], p)
		}
	}
	if pod.Spec.Annotations["example.com/kept"] != "yes" || pod.Spec.UID != "uid-default-web" {
		t.Errorf("pod came back as %+v", pod.Spec)
	}
	assertExec(t, lab, pod, container)
	assertMachineUntouched(t)
	assertPodGoes(t, lab, pod)
}

// assertExec runs a command by CRI and one in the pod's namespace; both see the pod's own address.
func assertExec(t *testing.T, lab *Lab, pod Pod, container string) {
	t.Helper()
	url := "http://" + pod.IPs[0] + ":8080/"
	byCRI, err := lab.CRI().Exec(t.Context(), container, "/labtool", "get", url)
	if err != nil || !strings.Contains(byCRI, `"remote":"`+pod.IPs[0]) {
		t.Errorf("executing in the container: %v: %s", err, byCRI)
	}
	if _, err := lab.CRI().Exec(t.Context(), container, "/labtool", "nonsense"); err == nil {
		t.Error("executing a command that fails gave no error")
	}
	inPod, err := lab.InPod(t.Context(), pod.ID, "ip", "-o", "addr", "show", "eth0")
	if err != nil || !strings.Contains(inPod, pod.IPs[0]) {
		t.Errorf("running ip in the pod: %v: %s", err, inPod)
	}
}

func assertPodGoes(t *testing.T, lab *Lab, pod Pod) {
	t.Helper()
	for range 2 { // the second time nothing is there
		if err := lab.CRI().StopPod(t.Context(), pod.ID); err != nil {
			t.Fatal(err)
		}
		if err := lab.CRI().RemovePod(t.Context(), pod.ID); err != nil {
			t.Fatal(err)
		}
	}
	left, err := lab.CRI().ListPods(t.Context())
	if err != nil || len(left) != 0 {
		t.Errorf("pods after their removal: %v, %v", left, err)
	}
	if _, err := lab.InNode(t.Context(), "test", "!", "-e", pod.NetNS); err != nil {
		t.Errorf("the pod's network namespace is still there: %v", err)
	}
}

func TestPodsReachEachOther(t *testing.T) {
	lab := upLab(t)
	a, _ := runTool(t, lab, PodSpec{Name: "a"})
	b, container := runTool(t, lab, PodSpec{Name: "b", Namespace: "other"})
	fetch(t, lab, a) // it serves
	for _, ip := range a.IPs {
		if out, err := lab.CRI().Exec(t.Context(), container, "/labtool", "ping", "-count", "2", ip); err != nil {
			t.Errorf("pinging %s: %v: %s", ip, err, out)
		}
	}
	if slices.Equal(a.IPs, b.IPs) {
		t.Errorf("both pods have %v", a.IPs)
	}
}

func TestHostNetworkPod(t *testing.T) {
	lab := upLab(t)
	pod, container := runTool(t, lab, PodSpec{Name: "host", HostNetwork: true})
	if pod.NetNS != "" || !pod.Spec.HostNetwork {
		t.Errorf("pod of the host's network has namespace %q, spec %+v", pod.NetNS, pod.Spec)
	}
	if _, err := lab.InPod(t.Context(), pod.ID, "true"); err == nil {
		t.Error("running in its namespace gave no error")
	}
	eventually(t, "the pod serves at the node's address", func(ctx context.Context) error {
		_, err := lab.CRI().Exec(ctx, container, "/labtool", "get", "http://"+NodeIP4+":8080/")
		return err
	})
}

func TestContainerdRestarts(t *testing.T) {
	lab := upLab(t)
	pod, _ := runTool(t, lab, PodSpec{Name: "web"})
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		before := lab.Containerd().Process().PID()
		if err := lab.Containerd().Restart(t.Context(), sig); err != nil {
			t.Fatalf("restarting with %v: %v", sig, err)
		}
		if after := lab.Containerd().Process().PID(); after == before {
			t.Errorf("restarting with %v kept process %d", sig, after)
		}
		now, err := lab.CRI().PodStatus(t.Context(), pod.ID)
		if err != nil || !now.Ready || now.PID != pod.PID {
			t.Errorf("after %v the pod is %+v, was %+v: %v", sig, now, pod, err)
		}
		fetch(t, lab, pod)
	}
	runTool(t, lab, PodSpec{Name: "later"})
}
