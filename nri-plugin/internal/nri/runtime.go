// SPDX-License-Identifier: BSD-3-Clause

package nri

import (
	"github.com/containerd/nri/pkg/stub"

	"tailscale-nri/nri-plugin/internal/statussocket"
)

// infoOf returns what is known of the runtime of an accepted session. A runtime that
// does not run this pod is never accepted.
func infoOf(ses *session, s stub.Stub, looksForPod bool) statussocket.RuntimeInfo {
	is := ses.runtime.Load()
	return statussocket.RuntimeInfo{
		Name: is.name, Version: is.version, RunsThisPod: looksForPod,
		RegistrationTimeout: s.RegistrationTimeout(), RequestTimeout: s.RequestTimeout(),
	}
}
