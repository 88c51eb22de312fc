// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/settings"
	"tailscale-nri/nri-plugin/internal/statustest"
)

// writeRecord writes a pod's record, as the engine does, of a sandbox whose namespace
// is gone. more is fields of the pod.
func writeRecord(t *testing.T, stateDir, uid, link, more string) {
	t.Helper()
	dir := filepath.Join(stateDir, uid)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf(`{"version": 1, "pod": {"uid": %q, "sandboxID": %q, "namespace": "default", "name": %q, %s},
		"netns": {"paths": ["/nowhere"]}, "link": %q, "logID": "%064d"}`, uid, link[len("vetht"):], uid, more, link, 1)
	if err := os.WriteFile(filepath.Join(dir, "pod.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func makeDir(t *testing.T, dir string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(dir, mode); err != nil {
		t.Fatal(err)
	}
}

func TestCheckState(t *testing.T) {
	h := testHost(t)
	dir := h.cfg.StateDir
	expect(t, look(t, h, checkState), ResultWarn, dir+" is not there", remedyStateMissing)
	makeDir(t, dir, 0o700)
	got := look(t, h, checkState)
	expect(t, got, ResultOK, "free", "")
	if len(got) != 1 {
		t.Errorf("an empty directory: %+v", got)
	}
	chmod := func(path string, mode os.FileMode) {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	chmod(dir, 0o755) // as the kubelet makes it
	writeRecord(t, dir, "uid-own", "vetht0123456789", `"hostname": "own"`)
	if got := look(t, h, checkState); len(got) != 1 {
		t.Errorf("as the kubelet makes it: %+v", got)
	}
	chmod(dir, 0o775)
	chmod(filepath.Join(dir, "uid-own"), 0o750)
	makeDir(t, filepath.Join(dir, "uid-1.damaged"), 0o700)
	makeDir(t, filepath.Join(dir, "uid-2", "tailscaled.state.copied"), 0o700)
	makeDir(t, filepath.Join(dir, "uid-3"), 0o700)
	if err := os.WriteFile(filepath.Join(dir, "uid-3", "pod.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := listTree(t, dir)
	got = look(t, h, checkState)
	expect(t, got, ResultWarn, "others may write to "+dir+", mode 0775", remedyStateMode)
	expect(t, got, ResultWarn, "uid-own, mode 0750", remedyStateMode)
	expect(t, got, ResultWarn, "set aside: uid-1.damaged, uid-2/tailscaled.state.copied", remedySetAside)
	expect(t, got, ResultFail, "uid-3/pod.json is damaged", remedyBadRecord)
	if after := listTree(t, dir); after != before {
		t.Errorf("it changed\n%s\nto\n%s", before, after)
	}

	file := testHost(t)
	if err := os.WriteFile(file.cfg.StateDir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, look(t, file, checkState), ResultFail, "is not a directory", remedyStateRead)
	below := testHost(t, settings.StateDir+"="+filepath.Join(file.cfg.StateDir, "below"))
	expect(t, look(t, below, checkState), ResultFail, "not a directory", remedyStateRead)
}

// listTree has a line for each file below dir, with its size and time.
func listTree(t *testing.T, dir string) (text string) {
	t.Helper()
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		text += fmt.Sprintln(path, info.Mode(), info.Size(), info.ModTime())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestCheckDisk: file systems that are full, or nearly, or read-only.
func TestCheckDisk(t *testing.T) {
	h := testHost(t)
	makeDir(t, h.cfg.StateDir, 0o700)
	for _, tt := range []struct {
		options, seen  string
		flags          uintptr
		result, remedy string
	}{
		{"mode=700,size=1g,nr_inodes=5000", "1024 MiB and 4999 inodes free", 0, ResultOK, ""},
		{"mode=700,size=1g,nr_inodes=1000", "999 inodes free", 0, ResultWarn, remedySpace},
		{"mode=700,size=8m", "8 MiB", 0, ResultWarn, remedySpace},
		{"mode=700,size=512k", "0 MiB", 0, ResultFail, remedySpace},
		{"mode=700,size=1g,nr_inodes=20", "19 inodes free", 0, ResultFail, remedySpace},
		{"mode=700", "read-only file system", unix.MS_RDONLY, ResultFail, remedyStateWrite},
	} {
		inMounts(t, func() error {
			if err := unix.Mount("tmpfs", h.cfg.StateDir, "tmpfs", tt.flags, tt.options); err != nil {
				return fmt.Errorf("%s: %w", tt.options, err)
			}
			expect(t, look(t, h, checkState), tt.result, tt.seen, tt.remedy)
			return nil
		})
	}
}

// inMounts runs f on a thread whose mounts nobody else sees, and that ends with it.
func inMounts(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestCheckLeftovers: links and records, each with and without the other.
func TestCheckLeftovers(t *testing.T) {
	h := testHost(t)
	plugintest.InNetns(t, func() {
		expect(t, look(t, h, checkLeftovers), ResultOK, "0 links, 0 records, no plugin to ask", "")
		plugintest.AddLink(t, "vetht0123456789", 1280)
		expect(t, look(t, h, checkLeftovers), ResultWarn, "links without a record: vetht0123456789", remedyLeftLink)
		writeRecord(t, h.cfg.StateDir, "uid-left", "vetht0123456789", `"hostname": "left"`)
		got := look(t, h, checkLeftovers)
		expect(t, got, ResultWarn, "records without a sandbox: default/uid-left", remedyLeftRecord)
		if len(got) != 1 {
			t.Errorf("got %+v", got)
		}
		// The pod's next sandbox gets the node: the plugin serves it.
		h.cfg.StatusSocket = statustest.Start(t, []engine.NodeStatus{{UID: "uid-left", State: engine.Stopped}})
		expect(t, look(t, h, checkLeftovers), ResultOK, "1 links, 1 records", "")
	})
}

// TestLeftoversOfAMoment: a pod that goes while the doctor looks leaves nothing.
func TestLeftoversOfAMoment(t *testing.T) {
	h := testHost(t)
	looks := 0
	h.inspect = func() (engine.HostView, error) {
		looks++
		if looks == 1 {
			return engine.HostView{Links: []engine.HostLink{{Name: "vetht00000000aa"}}}, nil
		}
		return engine.HostView{Links: []engine.HostLink{{Name: "vetht00000000bb"}}}, nil
	}
	expect(t, look(t, h, checkLeftovers), ResultOK, "1 links", "")
	if looks != 2 {
		t.Errorf("%d looks", looks)
	}
}

func TestCheckFiles(t *testing.T) {
	h := testHost(t)
	expect(t, look(t, h, checkFiles), ResultUnknown, "no such file", "")
	for soft, want := range map[string]Finding{
		"unlimited": fine("no limit"), "1048576": fine("a process like this one may have 1048576 open files: room for 95325 more pods"), "1024": warn("room for 93 more pods", remedyFiles), "10": fail("room for 0", remedyFiles),
	} {
		h.put(t, "proc/self/limits", "Limit                     Soft Limit           Hard Limit           Units\nMax open files            "+soft+"   1048576   files\n")
		expect(t, look(t, h, checkFiles), want.Result, want.Seen, want.Remedy)
	}
	// The running plugin is asked who it is: here, this process.
	h.root, h.cfg.StatusSocket = "/", statustest.Start(t, nil)
	expect(t, look(t, h, checkFiles), ResultOK, "the plugin has", "")
}

func TestCheckMemory(t *testing.T) {
	h := testHost(t)
	expect(t, look(t, h, checkMemory), ResultUnknown, "no such file", "")
	const info = "MemTotal:       8000000 kB\nMemFree:  100 kB\nMemAvailable:   %d kB\n"
	h.put(t, "proc/meminfo", fmt.Sprintf(info, 4000000))
	expect(t, look(t, h, checkMemory), ResultOK, "3906 of 7812 MiB", "")
	h.put(t, "proc/pressure/memory", "some avg10=20.00 avg60=12.50 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
	expect(t, look(t, h, checkMemory), ResultWarn, "12.5 %", remedyMemory)
	h.put(t, "proc/pressure/memory", "some avg10=20.00 avg60=2.50 avg300=0.00 total=0\n")
	expect(t, look(t, h, checkMemory), ResultOK, "2.5 %", "")
	h.put(t, "proc/meminfo", fmt.Sprintf(info, 300000))
	expect(t, look(t, h, checkMemory), ResultWarn, "292 of 7812 MiB", remedyMemory)
}
