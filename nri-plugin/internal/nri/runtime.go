// SPDX-License-Identifier: BSD-3-Clause

package nri

import (
	"github.com/containerd/nri/pkg/stub"

	"tailscale-nri/nri-plugin/internal/statussocket"
)

// infoOf is of a session that was accepted: one whose runtime does not run the pod
// that is looked for never is.
func infoOf(ses *session, s stub.Stub, looksForPod bool) statussocket.RuntimeInfo {
	is := ses.runtime.Load()
	return statussocket.RuntimeInfo{
		Name: is.name, Version: is.version, RunsThisPod: looksForPod,
		RegistrationTimeout: s.RegistrationTimeout(), RequestTimeout: s.RequestTimeout(),
	}
}
