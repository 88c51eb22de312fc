// SPDX-License-Identifier: BSD-3-Clause

package k3s

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"tailscale-nri/deploy/internal/labtest"
)

// patience bounds a hang. It is not an expectation.
const patience = 30 * time.Second

// TestStarts: with our file a real containerd comes up and offers NRI where the plugin looks for it. It has a /run of
// its own, so that it is not the machine's, and an /etc and an /opt, in which it makes directories.
func TestStarts(t *testing.T) {
	for _, file := range []string{"50-nri.toml", "config-v3.toml.tmpl", "config.toml.tmpl"} {
		t.Run(file, func(t *testing.T) {
			n := newNode(t)
			n.Imports = true
			n.put(t, file)
			script := "for d in /run /etc /opt; do mount -t tmpfs none $d || exit 1; done; exec " + labtest.Built(t, "containerd", "lab-tools") + " --config " + n.render(t)
			cmd := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", script)
			var log bytes.Buffer
			cmd.Stdout, cmd.Stderr = &log, &log
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			defer func() {
				cmd.Process.Signal(os.Interrupt)
				<-ended
			}()
			if !appears(fmt.Sprintf("/proc/%d/root/run/nri/nri.sock", cmd.Process.Pid), ended) {
				t.Errorf("no NRI socket; containerd said\n%s", &log)
			}
		})
	}
}

// appears waits for a file, unless the program that is to make it ends.
func appears(file string, ended chan error) bool {
	deadline := time.After(patience)
	for {
		if _, err := os.Stat(file); err == nil {
			return true
		}
		select {
		case err := <-ended:
			ended <- err
			return false
		case <-deadline:
			return false
		case <-time.After(20 * time.Millisecond):
		}
	}
}
