// SPDX-License-Identifier: BSD-3-Clause

package nri

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/api"
	"tailscale.com/tstime"

	"tailscale-nri/nri-plugin/internal/settings"
)

// connection is the plugin on one connection to the runtime.
type connection struct {
	*Plugin
	*session
}

// session is the state of one connection.
type session struct {
	socket       string      // path of the NRI socket
	synchronized func(error) // is told how Synchronize went

	runtime atomic.Pointer[runtimeName]
	once    sync.Once     // of refused
	refusal error         // set before refused is closed
	refused chan struct{} // closed when the plugin does not take this runtime

	accept   sync.Once     // of accepted
	accepted chan struct{} // closed when the plugin has caught up with the runtime
}

func newSession(socket string, synchronized func(error)) *session {
	s := &session{socket: socket, refused: make(chan struct{}), accepted: make(chan struct{})}
	s.synchronized = func(err error) {
		if err == nil {
			s.accept.Do(func() { close(s.accepted) })
		}
		synchronized(err)
	}
	s.runtime.Store(&runtimeName{})
	return s
}

// refuse ends the session for the plugin's own reason.
func (s *session) refuse(err error) {
	s.once.Do(func() {
		s.refusal = err
		close(s.refused)
	})
}

// end is the error of a session that is over.
func (s *session) end() error {
	select {
	case <-s.refused:
		return s.refusal
	default:
		return errClosed
	}
}

// runtimeName is a runtime's name and version.
type runtimeName struct{ name, version string }

// otherRuntime is the error of a runtime that does not run the pod that this
// process is in. Docker's own NRI, or a distribution's containerd next to k3s,
// takes the socket when it starts last: the file is replaced, without a notification.
type otherRuntime struct {
	runtimeName
	socket string
}

func (e otherRuntime) Error() string {
	return fmt.Sprintf("%s answers on the NRI socket %s, but does not run this pod: "+
		"another runtime has taken the kubelet's socket; disable NRI there, restart the kubelet's runtime, or give each a socket of its own (%s)",
		cmp.Or(e.name, "a runtime")+" "+cmp.Or(e.version, "of unknown version"), e.socket, settings.NRISocket)
}

// checkRuntime returns an error unless the runtime's sandboxes include the pod that this
// process is in. The right runtime always lists it. A sandbox is in the list before its
// first container is created, and after a restart containerd has read all of them before
// it opens the socket (2.4.2, internal/cri/server, Run).
func (c connection) checkRuntime(sandboxes []*api.PodSandbox) error {
	if c.OwnUID == "" || slices.ContainsFunc(sandboxes, func(sb *api.PodSandbox) bool { return sb.GetUid() == c.OwnUID }) {
		return nil
	}
	return otherRuntime{*c.runtime.Load(), c.socket}
}

// otherPoll is how often to look whether the socket is another file.
const otherPoll = 2 * time.Second

// awaitOther waits until another process may answer on the socket: the file is a
// new one, which each runtime makes when it starts, or a minute is over. Asking
// more often would be at the cost of that runtime, where a registration holds up
// all hooks.
func (r *Registration) awaitOther(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(r.otherWait, time.Minute))
	defer cancel()
	for ctx.Err() == nil {
		now, err := os.Stat(r.Socket)
		if err == nil && (r.tried == nil || !os.SameFile(now, r.tried) || !now.ModTime().Equal(r.tried.ModTime())) {
			return
		}
		tstime.Sleep(ctx, otherPoll)
	}
}
