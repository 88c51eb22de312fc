// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"fmt"
	"strings"
)

// workloads has pods come and go as a Deployment's, a StatefulSet's and a Job's do. A device is deleted when the kubelet
// removes the sandbox, which it does once in a minute: that is waited for once.
func workloads(s *stage) {
	web := podSpec{name: "rolled", annotations: enabled(), container: probed()}
	db := podSpec{name: "db", annotations: enabled(), container: probed()}
	s.apply(web.workload("Deployment", 2, nil), db.workload("StatefulSet", 1, object{"serviceName": "db"}))
	before, after := s.rollDeployment("rolled")
	s.replaceStatefulPod()
	s.runJob()
	s.kubectl("delete", "statefulset/db", "job/task", "--wait", "--cascade=foreground")
	s.awaitDevices(after...)
	for _, n := range after {
		if n.NodeID == before[0].NodeID || n.NodeID == before[1].NodeID {
			s.t.Errorf("pod %s has the device of a pod that is gone", n.Pod)
		}
		s.reachedFromPeer(n.IP4())
	}
}

// rollDeployment restarts it and returns its nodes, of the pods that go and of those that come.
func (s *stage) rollDeployment(name string) (before, after []tailnetNode) {
	s.t.Helper()
	s.kubectl("rollout", "status", "deployment/"+name, "--timeout="+patience.String())
	before = s.awaitRunning(s.podsOf(name)...)
	s.kubectl("rollout", "restart", "deployment/"+name)
	s.kubectl("rollout", "status", "deployment/"+name, "--timeout="+patience.String())
	s.kubectl("wait", "--for=delete", "--timeout="+patience.String(), "pod/"+before[0].Pod, "pod/"+before[1].Pod)
	return before, s.awaitRunning(s.podsOf(name)...)
}

// replaceStatefulPod deletes db-0: the one that comes has its name in the tailnet.
func (s *stage) replaceStatefulPod() {
	s.t.Helper()
	s.kubectl("rollout", "status", "statefulset/db", "--timeout="+patience.String())
	before := s.awaitRunning("db-0")[0]
	s.kubectl("delete", "pod", "db-0", "--wait")
	s.kubectl("rollout", "status", "statefulset/db", "--timeout="+patience.String())
	after := s.awaitRunning("db-0")[0]
	if after.UID == before.UID || after.NodeID == before.NodeID {
		s.t.Errorf("db-0 was %v, and is %v", before, after)
	}
	s.eventually(func() error { // the old device goes first, and then the name is free
		after, err := s.tailnetNodeOf("db-0")
		if err == nil && after.name() != before.name() {
			err = fmt.Errorf("db-0 is %s in the tailnet, and was %s", after.name(), before.name())
		}
		return err
	})
	s.reachedFromPeer(after.IP4())
}

// runJob asks the peer over the tailnet once, and ends.
func (s *stage) runJob() {
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
}
