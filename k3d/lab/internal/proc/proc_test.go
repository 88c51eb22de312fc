// SPDX-License-Identifier: BSD-3-Clause

package proc

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestChild finds a shell's child, and none of a process that has none.
func TestChild(t *testing.T) {
	parent := exec.Command("sh", "-c", "sleep 60 & echo $!; wait")
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = parent.Wait() }()
	defer parent.Process.Kill()
	var child int
	if err := json.NewDecoder(out).Decode(&child); err != nil { // a PID is JSON
		t.Fatal(err)
	}
	if process, err := os.FindProcess(child); err == nil {
		defer process.Kill()
	}
	if got := Child(parent.Process.Pid); got != child {
		t.Errorf("process %d has the child %d, want %d", parent.Process.Pid, got, child)
	}
	if got := Child(child); got != 0 {
		t.Errorf("process %d has the child %d, want none", child, got)
	}
}

// TestOwnProcess reads this one.
func TestOwnProcess(t *testing.T) {
	before, err := CPUTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	machineBefore, err := MachineTime()
	if err != nil {
		t.Fatal(err)
	}
	for after := before; after <= before+5*Tick; {
		if after, err = CPUTime(os.Getpid()); err != nil {
			t.Fatal(err)
		}
	}
	if machine, err := MachineTime(); err != nil || machine < machineBefore+4*Tick {
		t.Errorf("the machine was busy for %v: %v", machine-machineBefore, err)
	}
	if m, err := ReadMemory(os.Getpid(), os.Getpid()); err != nil || m.PSS < 2 || m.RSS < m.PSS {
		t.Errorf("memory %+v: %v", m, err)
	}
	argv, err := CommandLine(os.Getpid())
	if err != nil || strings.Join(argv, " ") != strings.Join(os.Args, " ") {
		t.Errorf("got %q, %v, want %q", argv, err, os.Args)
	}
}

func TestEndedProcess(t *testing.T) {
	const none = 1 << 30
	_, cpu := CPUTime(none)
	_, memory := ReadMemory(none)
	_, argv := CommandLine(none)
	for what, err := range map[string]error{"CPU time": cpu, "memory": memory, "command line": argv} {
		if err == nil {
			t.Errorf("the %s of a process that does not exist is no error", what)
		}
	}
}
