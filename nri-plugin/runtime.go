// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"time"

	"github.com/containerd/nri/pkg/stub"
)

// askRuntime is what to ask for the runtime.
const askRuntime = "runtime"

// runtimeInfo is what is known of the runtime that the plugin is registered with.
type runtimeInfo struct {
	Name                string        `json:"name"`
	Version             string        `json:"version"`
	RunsThisPod         bool          `json:"runsThisPod"` // it has listed the pod of POD_UID; false where that is not set
	RegistrationTimeout time.Duration `json:"registrationTimeout"`
	RequestTimeout      time.Duration `json:"requestTimeout"`
}

// infoOf is of a session that was accepted: one whose runtime does not run the pod
// that is looked for never is.
func infoOf(ses *session, s stub.Stub, looksForPod bool) runtimeInfo {
	is := ses.runtime.Load()
	return runtimeInfo{
		Name: is.name, Version: is.version, RunsThisPod: looksForPod,
		RegistrationTimeout: s.RegistrationTimeout(), RequestTimeout: s.RequestTimeout(),
	}
}

func (h *health) registeredAs(info runtimeInfo) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.runtime = info
}

// registeredWith is the zero value unless the plugin is registered.
func (h *health) registeredWith() runtimeInfo {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.phase != registered {
		return runtimeInfo{}
	}
	return h.runtime
}
