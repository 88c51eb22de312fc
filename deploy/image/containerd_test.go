// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tailscale-nri/deploy/internal/labtest"
	"tailscale-nri/k3d/lab"
)

// testContainerd has a real containerd import the archive, as `k3d image import` does, and the whole layout, and run
// what is in it as a kubelet would.
func (r real) testContainerd(t *testing.T) {
	l := labtest.Up(t, "tsnri-image")
	for _, archive := range []string{r.archive, tarOf(t, r.layout)} {
		importImage(t, l, archive)
	}
	pod := lab.PodSpec{Name: "image", UID: "uid-image"}
	id, err := l.CRI().RunPod(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	// Without a registry's name, as manifests have it.
	spec := lab.ContainerSpec{Name: "version", Image: "tailscale-nri:dev", Args: []string{"-version"}}
	if _, err := l.CRI().RunContainer(t.Context(), id, spec); err != nil {
		t.Fatal(err)
	}
	awaitLog(t, l.CRI().LogPath(pod, "version"), "tailscale-nri "+realVersion)
}

func importImage(t *testing.T, l *lab.Lab, archive string) {
	t.Helper()
	const name = "docker.io/library/tailscale-nri:dev"
	ctr := []string{"--namespace", "k8s.io", "images"}
	if _, err := l.InNode(t.Context(), "ctr", append(ctr, "import", "--all-platforms", archive)...); err != nil {
		t.Fatal(err)
	}
	images, err := l.InNode(t.Context(), "ctr", append(ctr, "list", "-q")...)
	if err != nil || !strings.Contains(images, name+"\n") {
		t.Fatalf("images after %s: %q, %v", archive, images, err)
	}
}

// tarOf packs a directory.
func tarOf(t *testing.T, dir string) string {
	t.Helper()
	archive := filepath.Join(t.TempDir(), "layout.tar")
	output(t, "tar", "-C", dir, "-cf", archive, ".")
	return archive
}

// awaitLog waits until a container has written a text.
func awaitLog(t *testing.T, file, want string) {
	t.Helper()
	var log []byte
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if log, _ = os.ReadFile(file); strings.Contains(string(log), want) {
			return
		}
	}
	t.Errorf("the container has written %q, want %q", log, want)
}
