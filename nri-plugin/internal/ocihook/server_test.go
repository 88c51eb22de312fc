// SPDX-License-Identifier: BSD-3-Clause

package ocihook

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestHookProgram: the program is a copy of this one, whose name says which, that
// is created again where it is damaged; old ones go.
func TestHookProgram(t *testing.T) {
	dir := t.TempDir()
	h := NewServer(dir, nil, nil, slog.New(slog.DiscardHandler))
	t.Cleanup(h.Close)
	if _, err := os.Stat(filepath.Join(dir, dirName)); err == nil {
		t.Fatal("there is a directory that nobody has asked for")
	}
	old, recent, half := filepath.Join(dir, dirName, programPrefix+"old"), filepath.Join(dir, dirName, programPrefix+"recent"), filepath.Join(dir, dirName, newPrefix+"1")
	if err := os.Mkdir(filepath.Join(dir, dirName), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{old, recent, half} {
		if err := os.WriteFile(path, nil, 0o500); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chtimes(old, time.Time{}, time.Now().Add(-2*keepFor)); err != nil {
		t.Fatal(err)
	}
	program, err := h.Prepare()
	if err != nil {
		t.Fatal(err)
	}
	if ours, _ := hashOf(self); !strings.HasSuffix(program, programPrefix+ours[:16]) {
		t.Errorf("the program is %s, its hash %s", program, ours)
	}
	info, err := os.Stat(program)
	if err != nil || info.Mode().Perm() != 0o500 {
		t.Errorf("the program is %v, %v", info, err)
	}
	for path, want := range map[string]bool{old: false, recent: true, half: false} {
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := os.Truncate(program, 100); err != nil {
		t.Fatal(err)
	}
	if path, err := installHook(filepath.Dir(program)); err != nil || path != program {
		t.Errorf("installed %s, %v", path, err)
	}
	if again, _ := hashOf(program); !strings.HasPrefix(again, program[len(program)-16:]) {
		t.Error("a program that was cut off is still there")
	}
}
