// SPDX-License-Identifier: BSD-3-Clause

// Package ocihook is what the runtime runs before a container of a pod that waits for
// its node or has the tailnet's names. [Run] is this program as that hook, in a process
// of its own; [Server] is the plugin's side, which installs the program and answers it.
//
// It adds no hook to a container, which package nri does, and decides for no pod
// whether it waits.
package ocihook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"tailscale-nri/nri-plugin/internal/errtext"
	"tailscale-nri/nri-plugin/internal/podspec"
)

// Command is the first argument of this program where the runtime runs it as
// the OCI hook createRuntime of a container. It is not for users.
const Command = "oci-hook"

const (
	// Patience is how long a hook may take beyond what it waits for.
	Patience = 10 * time.Second
	// ResolvPatience is how long a container waits for its resolv.conf while this
	// plugin is away: a restart takes less.
	ResolvPatience = 5 * time.Second
	// retryEvery is how often to look for a plugin that is away.
	retryEvery = 50 * time.Millisecond
	// MaxResolvConf is far above what any resolver reads.
	MaxResolvConf = 64 << 10
)

// Call says what a hook is to do. It is the hook's second argument, as JSON:
// it holds no secret.
type Call struct {
	PodUID     string        `json:"podUID"`
	Pod        string        `json:"pod"`             // namespace/name
	Wait       time.Duration `json:"wait,omitempty"`  // 0 is not at all
	Value      string        `json:"value,omitempty"` // of podspec.AnnotationWait
	Fails      bool          `json:"fails,omitempty"` // after Wait
	ResolvFrom string        `json:"resolvFrom,omitempty"`
	ResolvTo   string        `json:"resolvTo,omitempty"`
}

// Needed reports whether there is anything to do.
func (c Call) Needed() bool { return c.Wait > 0 || c.ResolvTo != "" }

// Encode is the hook's second argument.
func (c Call) Encode() string {
	text, _ := json.Marshal(c) // of strings and numbers: it has no errors
	return string(text)
}

// request is a hook's question to the plugin, and reply the answer: one JSON
// value each.
type request struct {
	PodUID     string        `json:"podUID"`
	Wait       time.Duration `json:"wait,omitempty"`
	ResolvConf []byte        `json:"resolvConf,omitempty"`
}

type reply struct {
	ResolvConf string `json:"resolvConf,omitempty"` // why it could not be set
	Down       string `json:"down,omitempty"`       // why the node is not up
}

// Is reports whether the runtime has called this program as a hook.
func Is(args []string) bool { return len(args) == 3 && args[1] == Command }

// Run is the whole program in a hook. If it returns an error, kubectl describe shows
// what it has written to stderr.
func Run(args []string, stdin io.Reader) error {
	var call Call
	if err := json.Unmarshal([]byte(args[2]), &call); err != nil {
		return fmt.Errorf("reading the hook's argument: %w", err)
	}
	// The plugin's socket is next to this program; its path may be too long for the
	// kernel.
	if err := os.Chdir(filepath.Dir(args[0])); err != nil {
		return fmt.Errorf("entering the hook's directory: %w", err)
	}
	most := call.Wait
	if call.ResolvTo != "" {
		most = max(most, ResolvPatience)
	}
	ctx, stop := context.WithTimeout(context.Background(), most)
	defer stop()
	endWithContainer(stdin, stop)
	return call.run(ctx)
}

// endWithContainer calls end when the container's first process is gone: nobody waits for
// the hook any more. If the pod's containers share a PID namespace, containerd 2.4.2 does
// not end the pod before the hook has ended.
func endWithContainer(stdin io.Reader, end func()) {
	var state struct {
		PID int `json:"pid"`
	}
	if err := json.NewDecoder(stdin).Decode(&state); err != nil || state.PID <= 0 {
		return
	}
	fd, err := unix.PidfdOpen(state.PID, 0)
	switch {
	case errors.Is(err, unix.ESRCH):
		end()
		return
	case err != nil: // Linux before 5.3
		return
	}
	go func() {
		for {
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
			if !errors.Is(err, unix.EINTR) {
				end()
				return
			}
		}
	}()
}

// run does what the call says, until ctx is done.
func (c Call) run(ctx context.Context) error {
	req := request{PodUID: c.PodUID}
	if c.ResolvTo != "" {
		var err error
		if req.ResolvConf, err = readAtMost(c.ResolvFrom, MaxResolvConf); err != nil {
			return fmt.Errorf("reading the pod's resolv.conf: %w", err)
		}
	}
	answer, err := c.ask(ctx, req)
	if err != nil {
		answer = reply{ResolvConf: err.Error(), Down: "tailscale-nri does not answer on this host: " + err.Error()}
	}
	if c.ResolvTo != "" && answer.ResolvConf != "" {
		if err := fillEmpty(c.ResolvTo, req.ResolvConf); err != nil {
			return fmt.Errorf("writing the pod's resolv.conf: %w", err)
		}
	}
	if c.Wait == 0 || answer.Down == "" || !c.Fails {
		return nil
	}
	return fmt.Errorf("pod %s: annotation %s is %q: the pod's node is not up after that (%s): fix what is in the way, wait longer (at most %.0fs), or have the container start all the same with %s: %q",
		c.Pod, podspec.AnnotationWait, errtext.Clip(c.Value), answer.Down, podspec.MaxWait.Seconds(), podspec.AnnotationWaitPolicy, "start")
}

// ask asks until the plugin has answered: one that is restarted meanwhile is asked
// again.
func (c Call) ask(ctx context.Context, req request) (reply, error) {
	for until := time.Now().Add(c.Wait); ; {
		if c.Wait > 0 {
			req.Wait = max(time.Until(until), time.Millisecond)
		}
		answer, err := askOnce(ctx, req)
		if err == nil {
			return answer, nil
		}
		select {
		case <-time.After(retryEvery):
		case <-ctx.Done():
			return reply{}, err
		}
	}
}

// answerTime is how long the plugin may take beyond ctx, to say what it has waited for in
// vain.
const answerTime = time.Second

func askOnce(ctx context.Context, req request) (answer reply, err error) {
	conn, err := net.Dial("unix", socketName)
	if err != nil {
		return answer, err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline.Add(answerTime)); err != nil {
		return answer, err
	}
	defer context.AfterFunc(ctx, func() {
		if time.Now().Before(deadline) { // the container is gone
			conn.Close()
		}
	})()
	if err := json.NewEncoder(conn).Encode(req); err != nil {
		return answer, err
	}
	err = json.NewDecoder(conn).Decode(&answer)
	return answer, err
}

func readAtMost(path string, most int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(data)) > most {
		err = fmt.Errorf("%s has more than %d bytes: shorten the pod's dnsConfig", path, most)
	}
	return data, err
}

// fillEmpty writes a file that has nothing in it, in place: containers have a mount
// of it.
func fillEmpty(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || fi.Size() > 0 {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Close()
}
