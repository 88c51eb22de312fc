// SPDX-License-Identifier: BSD-3-Clause

package podstate

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"golang.org/x/sys/unix"
)

// DamagedExt ends the names of what was set aside; the second of a name gets a
// number, too.
const DamagedExt = ".damaged"

// CopiedExt ends the names of what was set aside because another host uses it.
const CopiedExt = ".copied"

var isSetAside = regexp.MustCompile(`\.(damaged|copied)(-[0-9]+)?$`).MatchString

// SetAside renames a file or directory that cannot be used, and returns
// its new path. What was set aside before stays.
func SetAside(path string) (string, error) { return setAsideAs(path, DamagedExt) }

// SetCopyAside is SetAside for what another host uses.
func SetCopyAside(path string) (string, error) { return setAsideAs(path, CopiedExt) }

func setAsideAs(path, ext string) (string, error) {
	to, err := freeName(path, ext)
	if err != nil {
		return "", err
	}
	return to, os.Rename(path, to)
}

func freeName(path, ext string) (string, error) {
	for i := 1; ; i++ {
		to := path + ext
		if i > 1 {
			to = fmt.Sprintf("%s-%d", to, i)
		}
		_, err := os.Lstat(to)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return to, nil
		case err != nil:
			return "", err
		}
	}
}

// CheckWritable returns why the directory cannot be written to, nil if it can be.
func CheckWritable(dir string) error {
	probe := filepath.Join(dir, ".writable")
	err := os.WriteFile(probe, []byte("x"), 0o600) // a full disk takes empty files
	if removeErr := os.Remove(probe); err == nil {
		err = removeErr
	}
	return Remedy(err)
}

// Remedy says what is to be done about an error of writing.
func Remedy(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w: free space on this host's disk", err)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w: make it writable; if it was, the kernel's log says why it no longer is", err)
	}
	return err
}

// ReplaceFile writes a file, 0600, under another name first. What a kill leaves
// under that name is overwritten by the next.
func ReplaceFile(path string, data []byte) error {
	next := path + ".new"
	err := os.WriteFile(next, data, 0o600)
	if err == nil {
		err = os.Rename(next, path)
	}
	if err != nil {
		os.Remove(next) // a full disk needs the room
	}
	return err
}

// RewriteFile writes a file in place, and creates it if it does not exist. A new file
// under the same name would not do: a bind mount keeps the file that it was made of. A
// reader sees the earlier content or the new one, with empty lines at its end perhaps.
// What the pod has written there, of any size, is not read into memory. A lease that a
// program of the pod has on it is not waited for, as the kernel would do for 45 seconds
// (fcntl(2), F_SETLEASE). written is 0 where the file had the content already.
func RewriteFile(path string, data []byte) (written int, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o644)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return 0, fmt.Errorf("a program of the pod holds a lease on /etc/resolv.conf, have it release that: %w", err)
	}
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	was, err := io.ReadAll(io.LimitReader(f, maxResolvConf+1))
	switch {
	case err != nil:
		return 0, err
	case bytes.Equal(was, data):
	case len(was) > maxResolvConf:
		err = f.Truncate(0)
		was = nil
		fallthrough
	default:
		padded := append(slices.Clone(data), bytes.Repeat([]byte("\n"), max(0, len(was)-len(data)))...)
		if err == nil {
			written, err = f.WriteAt(padded, 0)
		}
		if err == nil { // otherwise it would have zeros where nothing could be written
			err = f.Truncate(int64(len(data)))
		}
	}
	return written, errors.Join(err, f.Chmod(0o644)) // the pod's user may be anyone, and the umask anything
}

// RemoveAllButRecord removes all that is in a pod's directory but its record: keys
// without one are of a pod whose record was lost.
func RemoveAllButRecord(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, entry := range entries {
		if entry.Name() != RecordFile {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, entry.Name())))
		}
	}
	return err
}
