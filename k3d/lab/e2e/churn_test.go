// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/scene"
)

// TestManyPods makes and removes 50 pods, 8 at a time, and looks for what they leave: links, network namespaces, state
// and devices, and descriptors, threads and goroutines of the plugin.
func TestManyPods(t *testing.T) {
	t.Parallel()
	const many, few = 50, 4
	s := openServed(t, "many", "GOTRACEBACK=all")
	s.churn("warm", few)
	few0 := s.goroutines() // ends the plugin
	s.start("GOTRACEBACK=all")
	s.must(s.Registered(s.ctx))
	s.churn("warm", few)
	before := s.descriptors()
	s.churn("many", many)
	// Connections to the API that are kept open for the next call, and their like.
	const slack = 8
	if after := s.descriptors(); len(after) > len(before)+slack {
		t.Errorf("%d descriptors after %d pods, %d after %d:\n%v", len(after), many, len(before), few, after)
	}
	after := s.goroutines()
	if total(after) > total(few0)+slack {
		t.Errorf("%d goroutines after %d pods, %d after %d:\n%s", total(after), many, total(few0), few, grown(few0, after))
	}
	t.Logf("goroutines: %d after %d pods, %d after %d", total(few0), few, total(after), few+many)
}

// churn makes n pods, 8 at a time. Half of them wait for their node, the others end on their way into the tailnet.
func (s *stage) churn(name string, n int) {
	s.t.Helper()
	const together = 8
	numbers := make(chan int)
	var workers sync.WaitGroup
	for range together {
		workers.Go(func() {
			for i := range numbers {
				if err := s.onePod(fmt.Sprintf("%s%d", name, i), i%2 == 0); err != nil {
					s.t.Error(err)
				}
			}
		})
	}
	for i := range n {
		numbers <- i
	}
	close(numbers)
	workers.Wait()
	s.must(s.AwaitTraces(s.ctx, scene.Traces{}))
}

func (s *stage) onePod(name string, wait bool) error {
	pod, err := s.RunSandbox(s.ctx, lab.PodSpec{Name: name, Annotations: scene.OptIn()})
	if err != nil {
		return err
	}
	if wait {
		err = s.AwaitRunning(s.ctx, pod)
	}
	if removeErr := s.RemovePod(s.ctx, pod); removeErr != nil {
		return removeErr
	}
	return err
}

// descriptors are those of the plugin's process that serves.
func (s *stage) descriptors() (targets []string) {
	s.t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd/", s.Plugin.Serving())
	entries, err := os.ReadDir(dir)
	s.must(err)
	for _, e := range entries {
		if target, err := os.Readlink(dir + e.Name()); err == nil {
			targets = append(targets, target)
		}
	}
	slices.Sort(targets)
	return targets
}

var createdBy = regexp.MustCompile(`^created by (\S+)`)

// goroutines counts the plugin's by what created them. The Go runtime lists them when it ends on a SIGQUIT.
func (s *stage) goroutines() map[string]int {
	s.t.Helper()
	s.must(s.Plugin.End(s.ctx, unix.SIGQUIT))
	lines, err := s.LogLines()
	s.must(err)
	count := map[string]int{}
	for _, line := range lines {
		if m := createdBy.FindStringSubmatch(line); m != nil {
			count[m[1]]++
		}
	}
	if len(count) == 0 {
		s.t.Fatal("the plugin has listed no goroutines")
	}
	return count
}

func total(count map[string]int) (n int) {
	for c := range maps.Values(count) {
		n += c
	}
	return n
}

// grown lists what there is more of than before.
func grown(before, after map[string]int) string {
	var lines []string
	for name, n := range after {
		if n > before[name] {
			lines = append(lines, fmt.Sprintf("%+d %s", n-before[name], name))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
