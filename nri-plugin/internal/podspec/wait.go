// SPDX-License-Identifier: BSD-3-Clause

package podspec

import (
	"errors"
	"fmt"
	"time"

	"tailscale-nri/engine"
)

const (
	AnnotationWait       = AnnotationPrefix + "wait"
	AnnotationWaitPolicy = AnnotationPrefix + "wait-policy"
)

// The kubelet gives a container's start up after two minutes
// (runtimeRequestTimeout), and shows no reason then.
const minWait, MaxWait = time.Second, 90 * time.Second

// setWait sets how long a container waits; after that it fails, unless setWaitPolicy
// says otherwise.
func setWait(f *engine.Features, value string) error {
	d, err := time.ParseDuration(value)
	if err != nil || d < minWait || d > MaxWait {
		return fmt.Errorf("write a duration such as 30s, from %v to %.0fs: the kubelet gives a container two minutes to start", minWait, MaxWait.Seconds())
	}
	f.Wait, f.WaitFails = d, true
	return nil
}

// setWaitPolicy comes after setWait.
func setWaitPolicy(f *engine.Features, value string) error {
	if value != "fail" && value != "start" {
		return errors.New(`write "fail" to have a container fail that has waited in vain, which is the default, or "start" to have it start all the same`)
	}
	if f.Wait == 0 {
		return errors.New("it says what comes after a wait, and there is none: add " + AnnotationWait + `: "30s", or remove it`)
	}
	f.WaitFails = value == "fail"
	return nil
}
