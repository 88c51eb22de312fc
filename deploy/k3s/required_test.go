// SPDX-License-Identifier: BSD-3-Clause

package k3s

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tailscale-nri/deploy/internal/labtest"
	"tailscale-nri/k3d/lab"
)

const (
	required  = "required-plugins.noderesource.dev"
	tolerate  = "tolerate-missing-nri-plugins.noderesource.dev"
	ourPlugin = `["tailscale"]`
)

// TestWaitsForThePlugin: a pod that requires the plugin has its sandbox, and no container before the plugin is there.
func TestWaitsForThePlugin(t *testing.T) {
	for _, tt := range []struct {
		file string
		pods []waiting
	}{
		{"required-plugin.toml", []waiting{
			{"asks", map[string]string{required: ourPlugin}, missing},
			{"asks-for-pod", map[string]string{required + "/pod": ourPlugin}, missing},
			{"asks-for-container", map[string]string{required + "/container.main": ourPlugin}, missing},
			{"asks-for-another", map[string]string{required + "/container.other": ourPlugin}, ""},
			{"asks-by-index", map[string]string{required: `["50-tailscale"]`}, `required plugin "50-tailscale" not present`},
			{"asks-wrongly", map[string]string{required: "tailscale"}, "invalid " + required},
			{"does-not-ask", nil, ""},
		}},
		{"required-plugin-everywhere.toml", []waiting{
			{"any", nil, missing},
			{"agent", map[string]string{tolerate: "true"}, ""},
			{"tolerates-not", map[string]string{tolerate: "false"}, missing},
			{"tolerates-wrongly", map[string]string{tolerate: "yes"}, "invalid " + tolerate},
		}},
	} {
		t.Run(tt.file, func(t *testing.T) {
			l := labWith(t, tt.file)
			for i := range tt.pods {
				tt.pods[i].tryWithout(t, l)
			}
			connect(t, l)
			for i := range tt.pods {
				tt.pods[i].tryWith(t, l)
			}
		})
	}
}

// missing is containerd's error when the plugin is missing.
const missing = `required plugin "tailscale" not present`

// waiting is a pod and the error of its container while the plugin is away; "" means that it starts.
type waiting struct {
	name        string
	annotations map[string]string
	want        string
}

func (w *waiting) invalid() bool { return strings.HasPrefix(w.want, "invalid") }

func (w *waiting) spec() lab.PodSpec {
	return lab.PodSpec{Name: w.name, UID: "uid-" + w.name, Annotations: w.annotations}
}

func (w *waiting) start(t *testing.T, l *lab.Lab) error {
	t.Helper()
	pods, err := l.CRI().ListPods(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, pod := range pods {
		if pod.Spec.Name == w.name {
			_, err := l.CRI().RunContainer(t.Context(), pod.ID, lab.ContainerSpec{Name: "main"})
			return err
		}
	}
	return fmt.Errorf("no sandbox of %s", w.name)
}

func (w *waiting) tryWithout(t *testing.T, l *lab.Lab) {
	t.Helper()
	if _, err := l.CRI().RunPod(t.Context(), w.spec()); err != nil {
		t.Fatalf("the sandbox of %s: %v", w.name, err)
	}
	err := w.start(t, l)
	if w.want == "" && err != nil || w.want != "" && (err == nil || !strings.Contains(err.Error(), w.want)) {
		t.Errorf("%s, without the plugin: %v, want %q", w.name, err, w.want)
	}
}

// tryWith is the kubelet's next tries, where the first was refused. What the annotation is wrong in stays refused.
func (w *waiting) tryWith(t *testing.T, l *lab.Lab) {
	t.Helper()
	if w.want == "" {
		return
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		err := w.start(t, l)
		switch {
		case !w.invalid() && err == nil:
			return
		case w.invalid() && err != nil && strings.Contains(err.Error(), w.want):
			return
		case time.Now().After(deadline):
			t.Errorf("%s, with the plugin: %v", w.name, err)
			return
		}
	}
}

// labWith is a lab whose containerd imports one of our files.
func labWith(t *testing.T, file string) *lab.Lab {
	t.Helper()
	l := labtest.Up(t, "tsnri-require")
	path, err := filepath.Abs(file)
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(l.Dir(), "node", "containerd.toml")
	data, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	imports := strings.Replace(string(data), "imports = []", fmt.Sprintf("imports = ['%s']", path), 1)
	if imports == string(data) {
		t.Fatalf("%s has no line to change:\n%s", config, data)
	}
	write(t, config, imports)
	if err := l.Containerd().Restart(t.Context(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	return l
}

// connect starts the plugin itself, with a tailnet that is not there: that it is registered is all that containerd asks.
func connect(t *testing.T, l *lab.Lab) {
	t.Helper()
	process, err := l.StartPlugin([]string{
		"TS_AUTHKEY=tskey-auth-none", "TS_LOGIN_SERVER=http://127.0.0.1:1",
		"TS_STATE_DIR=" + t.TempDir(), "TS_STATUS_SOCKET=" + filepath.Join(t.TempDir(), "status.sock"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := process.End(context.Background(), unix.SIGTERM); err != nil {
			t.Error(err)
		}
	})
}
