// SPDX-License-Identifier: BSD-3-Clause

package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// markFile stands in a lab's directory, so that no other directory is ever taken for one and removed.
const markFile = ".tailscale-nri-lab"

// endPatience is how long Down waits for killed processes; a loaded machine needs well under a second.
const endPatience = 20 * time.Second

// Down removes all that a lab of this Config has made, whatever state it was left in. That there is none is not an error.
func Down(cfg Config) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	return cfg.down()
}

func (c Config) down() error {
	if err := c.checkMark(); err != nil {
		return err
	}
	if err := c.processes().killAll(endPatience); err != nil {
		return err
	}
	if err := c.removeCgroups(); err != nil {
		return err
	}
	if err := c.unmountAll(); err != nil {
		return err
	}
	if err := os.RemoveAll(c.Dir); err != nil {
		return fmt.Errorf("removing the lab's directory: %w", err)
	}
	return nil
}

// makeDir makes the lab's directory, marked as ours.
func (c Config) makeDir() error {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return fmt.Errorf("making the lab's directory: %w", err)
	}
	if err := os.WriteFile(c.path(markFile), []byte(c.Name+"\n"), 0o600); err != nil {
		return fmt.Errorf("marking the lab's directory: %w", err)
	}
	return nil
}

// checkMark refuses a directory that holds something and is not marked with the lab's name.
func (c Config) checkMark() error {
	mark, err := os.ReadFile(c.path(markFile))
	if err == nil && strings.TrimSpace(string(mark)) == c.Name {
		return nil
	}
	entries, err := os.ReadDir(c.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading the lab's directory: %w", err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("LAB_DIR=%q is not empty and not the directory of lab %q; give another one", c.Dir, c.Name)
	}
	return nil
}

// unmountAll takes down every mount below the lab's directory, the latest first, until none is left: the directory
// must not be emptied through one.
func (c Config) unmountAll() error {
	for range 10 {
		mounts, err := mountsBelow(c.Dir)
		if err != nil || len(mounts) == 0 {
			return err
		}
		slices.Reverse(mounts)
		for _, m := range mounts {
			if err := unix.Unmount(m, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
				return fmt.Errorf("unmounting %s: %w", m, err)
			}
		}
	}
	return fmt.Errorf("unmounting below %s: new mounts keep coming", c.Dir)
}

// mountsBelow lists the mount points below dir in the order they were made.
func mountsBelow(dir string) ([]string, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("listing mounts: %w", err)
	}
	defer file.Close()
	var mounts []string
	for lines := bufio.NewScanner(file); lines.Scan(); {
		fields := strings.Fields(lines.Text()) // proc_pid_mountinfo(5): the fifth is the mount point
		if len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			mounts = append(mounts, fields[4])
		}
	}
	return mounts, nil
}

// cgroups are the lab's directories in all hierarchies: many of cgroup v1, one of v2.
func (c Config) cgroups() []string {
	var dirs []string
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		found, _ := filepath.Glob(pattern + c.Name)
		dirs = append(dirs, found...)
	}
	return dirs
}

// removeCgroups removes the lab's cgroups, innermost first. The kernel lets go of a cgroup a moment after its last
// process, so a busy one is tried again.
func (c Config) removeCgroups() error {
	err := retryBusy(func() (failed error) {
		for _, dir := range c.cgroups() {
			failed = errors.Join(failed, removeCgroup(dir))
		}
		return failed
	})
	if err != nil {
		return fmt.Errorf("removing the lab's cgroups: %w", err)
	}
	return nil
}

func removeCgroup(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err == nil && entry.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	slices.Reverse(dirs)
	for _, d := range dirs {
		if rmErr := unix.Rmdir(d); rmErr != nil && !errors.Is(rmErr, unix.ENOENT) {
			err = errors.Join(err, fmt.Errorf("%s: %w", d, rmErr))
		}
	}
	return err
}

// Remains lists what is left of a lab of this Config: processes, cgroups, mounts, its directory. After a Down there
// is nothing.
func Remains(cfg Config) ([]string, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	left, err := mountsBelow(cfg.Dir)
	if err != nil {
		return nil, err
	}
	left = append(left, cfg.cgroups()...)
	if pids := cfg.processes().pids(); len(pids) > 0 {
		left = append(left, describe(pids))
	}
	if _, err := os.Lstat(cfg.Dir); err == nil {
		left = append(left, cfg.Dir)
	}
	return left, nil
}
