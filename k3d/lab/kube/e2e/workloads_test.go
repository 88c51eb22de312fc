// SPDX-License-Identifier: BSD-3-Clause

package e2e

import "strings"

// workloads has pods come and go as a Deployment's, a StatefulSet's and a Job's do.
func workloads(s *stage) {
	s.deployment()
	s.statefulSet()
	s.job()
}

// deployment is rolled: its new pods are new devices, and the old ones' are deleted.
func (s *stage) deployment() {
	s.t.Helper()
	web := podSpec{name: "rolled", annotations: enabled(), container: probed()}
	s.apply(web.workload("Deployment", 2, nil))
	s.kubectl("rollout", "status", "deployment/rolled", "--timeout="+patience.String())
	before := s.awaitRunning(s.podsOf("rolled")...)
	s.awaitDevices(before...)
	s.kubectl("rollout", "restart", "deployment/rolled")
	s.kubectl("rollout", "status", "deployment/rolled", "--timeout="+patience.String())
	s.kubectl("wait", "--for=delete", "--timeout="+patience.String(), "pod/"+before[0].Pod, "pod/"+before[1].Pod)
	after := s.awaitRunning(s.podsOf("rolled")...)
	s.awaitDevices(after...)
	for _, n := range after {
		if n.NodeID == before[0].NodeID || n.NodeID == before[1].NodeID {
			s.t.Errorf("pod %s has the device of a pod that is gone", n.Pod)
		}
		s.reachedFromPeer(n.IP4())
	}
	s.kubectl("delete", "deployment/rolled", "--wait", "--cascade=foreground")
	s.awaitDevices()
}

// statefulSet's pod is made anew, and has its name in the tailnet again.
func (s *stage) statefulSet() {
	s.t.Helper()
	s.apply(podSpec{name: "db", annotations: enabled(), container: probed()}.workload("StatefulSet", 1, object{"serviceName": "db"}))
	s.kubectl("rollout", "status", "statefulset/db", "--timeout="+patience.String())
	before := s.awaitRunning("db-0")[0]
	s.kubectl("delete", "pod", "db-0", "--wait")
	s.kubectl("rollout", "status", "statefulset/db", "--timeout="+patience.String())
	s.eventually(func() error {
		after, err := s.tailnetNodeOf("db-0")
		if err != nil || after.UID == before.UID || after.State != "Running" {
			return says(after.State, "Running, and another pod than before")
		}
		return says(after.name(), before.name()) // the old device is deleted, then the name is free
	})
	after := s.awaitRunning("db-0")[0]
	s.awaitDevices(after)
	if after.name() != before.name() {
		s.t.Errorf("db-0 is %s in the tailnet, and was %s", after.name(), before.name())
	}
	s.reachedFromPeer(after.IP4())
	s.kubectl("delete", "statefulset/db", "--wait", "--cascade=foreground")
	s.awaitDevices()
}

// job asks the peer over the tailnet once, and ends.
func (s *stage) job() {
	s.t.Helper()
	serving := s.peer.Command(s.ctx, s.Lab.ToolPath(), "serve")
	s.must(serving.Start())
	defer func() {
		_ = serving.Process.Kill()
		_ = serving.Wait()
	}()
	task := podSpec{name: "task", annotations: enabled(), args: []string{"get", "-timeout", "60s", "-retry", "2s", urlOf(s.peer.IP4)}}
	spec := task.spec()
	spec["restartPolicy"] = "Never"
	s.apply(object{
		"apiVersion": "batch/v1", "kind": "Job", "metadata": object{"name": "task"},
		"spec": object{"backoffLimit": 0, "template": object{"metadata": object{"annotations": task.annotations}, "spec": spec}},
	})
	s.kubectl("wait", "--for=condition=Complete", "--timeout="+patience.String(), "job/task")
	page, err := readPage(s.Kubectl(s.ctx, "logs", "job/task"))
	s.must(err)
	if !strings.HasPrefix(page.Remote.String(), "100.") {
		s.t.Errorf("the Job's pod asked as %v, want its tailnet address", page.Remote)
	}
	s.kubectl("delete", "job/task", "--wait", "--cascade=foreground")
	s.awaitDevices()
}
