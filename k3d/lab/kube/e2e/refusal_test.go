// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// invalidAnnotation shows where its user looks, and the pod starts once it is fixed.
func invalidAnnotation(s *stage) {
	wrong := podSpec{name: "wrong", node: "n2", annotations: enabled("tailscale.com/tags", "nonsense")}
	s.apply(wrong.object())
	s.eventually(func() error {
		out, err := s.Kubectl(s.ctx, "describe", "pod", "wrong")
		if err != nil {
			return err
		}
		return says(out, `annotation tailscale.com/tags is "nonsense"`, "write tags as tag:name", "FailedCreatePodSandBox")
	})
	// The annotations of a pod that has none of its containers yet count again at the kubelet's next try.
	s.kubectl("annotate", "--overwrite", "pod", "wrong", "tailscale.com/tags=tag:k8s-pod")
	s.awaitReady("wrong")
	s.awaitRunning("wrong")
}

// userNamespace has root in the pod be nobody on the node; its network namespace belongs to that user namespace.
func userNamespace(s *stage) {
	// Without it the pod cannot have its ServiceAccount's token, which lies on a tmpfs.
	if release, ok := mapsTmpfs(); !ok {
		s.t.Skipf("Linux %s does not map the owners of a tmpfs, as 6.3 does", release)
	}
	s.apply(podSpec{name: "mapped", node: "n1", annotations: enabled(), more: object{"hostUsers": false}}.object(),
		podSpec{name: "usual", node: "n2", annotations: enabled()}.object())
	s.awaitReady("mapped", "usual")
	nodes := s.awaitRunning("mapped", "usual")
	out, err := s.tool("mapped", "cat", "/proc/self/uid_map")
	s.must(err)
	var inside, outside, size uint32
	if _, err := fmt.Sscan(out, &inside, &outside, &size); err != nil || outside == 0 {
		s.t.Fatalf("the pod has no user namespace of its own: uid_map is %q, %v", out, err)
	}
	s.reaches("mapped", nodes[0].IP4(), nodes[1].IP4())
	s.reaches("usual", nodes[1].IP4(), nodes[0].IP4())
	s.reachedFromPeer(nodes[0].IP4())
}

func mapsTmpfs() (release string, ok bool) {
	var name unix.Utsname
	_ = unix.Uname(&name) // it cannot fail
	release = unix.ByteSliceToString(name.Release[:])
	var major, minor int
	_, err := fmt.Sscanf(release, "%d.%d", &major, &minor)
	return release, err == nil && (major > 6 || major == 6 && minor >= 3)
}
