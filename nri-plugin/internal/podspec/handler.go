// SPDX-License-Identifier: BSD-3-Clause

package podspec

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/api"

	"tailscale-nri/nri-plugin/internal/errtext"
	"tailscale-nri/nri-plugin/internal/settings"
)

// anyHandler in the list of runtime handlers stands for all of them.
const anyHandler = "*"

// CheckHandler reports an error for a sandbox whose runtime handler is not known to run
// pods in the host's kernel. gVisor and Kata read the interfaces of the pod's network
// namespace when the sandbox is created, before any NRI event (gvisor#2280,
// kata-containers#12962). ts0 would exist in that namespace, and the pod would not see
// it.
//
// The name says it all: NRI tells neither the handler's type nor its binary. The
// default handler has no name.
func CheckHandler(sb *api.PodSandbox, known []string) error {
	handler := sb.GetRuntimeHandler()
	if handler == "" || slices.Contains(known, anyHandler) || slices.Contains(known, handler) {
		return nil
	}
	return fmt.Errorf("annotation %s is \"true\", but the pod's runtimeClassName chooses the runtime handler %q, which is not in %s: "+
		"under gVisor or Kata no packet of the tailnet would reach the pod; remove one of the two, or add the handler there if it runs pods in the host's kernel",
		AnnotationEnabled, errtext.Clip(handler), settings.RuntimeHandlers)
}

// ParseHandlers reads a comma-separated list of runtime handlers.
func ParseHandlers(s string) ([]string, error) {
	var handlers []string
	for h := range strings.SplitSeq(s, ",") {
		h = strings.TrimSpace(h)
		if h != anyHandler && CheckLabel(h) != nil {
			return nil, fmt.Errorf("%q is not the name of a runtime handler: write names as in containerd's configuration, separated by commas, or %s for any", errtext.Clip(h), anyHandler)
		}
		handlers = append(handlers, h)
	}
	return handlers, nil
}
