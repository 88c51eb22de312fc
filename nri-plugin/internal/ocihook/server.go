// SPDX-License-Identifier: BSD-3-Clause

package ocihook

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"tailscale.com/tstime"

	"tailscale-nri/nri-plugin/internal/errtext"
	"tailscale-nri/nri-plugin/internal/podspec"
	"tailscale-nri/nri-plugin/internal/settings"
)

const (
	// dirName is the directory below the state directory, which has the same path on
	// the host and here, that holds the hook's program and the plugin's socket. No
	// pod's UID begins with a dot.
	dirName       = ".hook"
	socketName    = "plugin.sock"
	programPrefix = "tailscale-nri-" // and a part of its hash
	newPrefix     = ".new-"          // and anything: one that is being written
	// keepFor is how long a program is kept that no process has handed out: far
	// longer than containerd takes from the creation of a container to its start.
	keepFor = 24 * time.Hour
)

// waiter has the method of the engine that the server needs.
type waiter interface {
	// Await waits until the pod's node is up. Its error says why it is not.
	Await(ctx context.Context, podUID string) error
}

// Server answers the hooks, see addHook. It leaves no trace on a host until a pod needs
// a hook.
type Server struct {
	dir  string // absolute
	pods waiter
	Resolver
	log *slog.Logger

	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu      sync.Mutex
	ended   bool
	ln      *net.UnixListener // nil until a hook may need it
	program string            // that lies ready, "" for none
	touched time.Time         // when that was last told to the others
}

// NewServer serves hooks from below the state directory. A nil r sets no resolv.conf.
func NewServer(stateDir string, pods waiter, r Resolver, log *slog.Logger) *Server {
	h := &Server{dir: filepath.Join(stateDir, dirName), pods: pods, Resolver: r, log: log}
	h.ctx, h.stop = context.WithCancel(context.Background())
	return h
}

// Run serves the hooks of earlier processes' containers, and those of this one's,
// until ctx is done.
func (h *Server) Run(ctx context.Context) error {
	if _, err := os.Stat(h.dir); err == nil {
		h.mu.Lock()
		err := h.listen()
		h.mu.Unlock()
		if err != nil {
			h.log.Error("the hook's socket cannot be opened: containers that wait for their pod's node get no answer", "err", err)
		}
	}
	<-ctx.Done()
	h.Close()
	return nil
}

// Close ends all connections: the hooks ask the next process.
func (h *Server) Close() {
	h.stop()
	h.mu.Lock()
	h.ended = true
	if h.ln != nil {
		h.ln.Close()
	}
	h.mu.Unlock()
	h.wg.Wait()
}

// Prepare returns the path of the hook's program, which is there when it returns,
// as is the socket that the program asks.
func (h *Server) Prepare() (program string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.listen(); err != nil {
		return "", err
	}
	if _, err := os.Stat(h.program); err != nil {
		h.program = ""
	}
	if h.program == "" {
		if h.program, err = installHook(h.dir); err != nil {
			return "", err
		}
		h.touched = time.Time{}
	}
	if now := time.Now(); now.Sub(h.touched) > time.Hour {
		// That the process of another version does not remove it.
		_ = os.Chtimes(h.program, now, now)
		h.touched = now
		removeOldHooks(h.dir, h.program)
	}
	return h.program, nil
}

// listen opens the socket, for root alone. h.mu is held. This process has claimed
// the state directory, so a socket that is there belongs to a process that has ended.
func (h *Server) listen() error {
	if h.ended {
		return errors.New("tailscale-nri is ending")
	}
	if h.ln != nil {
		return nil
	}
	if err := os.Mkdir(h.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making the hook's directory: %w", err)
	}
	at, err := os.Open(h.dir)
	if err != nil {
		return fmt.Errorf("opening the hook's directory: %w", err)
	}
	defer at.Close()
	path := fmt.Sprintf("/proc/self/fd/%d/%s", at.Fd(), socketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replacing the hook's socket: %w", err)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return fmt.Errorf("opening the hook's socket: %w", err)
	}
	ln.SetUnlinkOnClose(false) // it may be the next process's by then
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return fmt.Errorf("protecting the hook's socket: %w", err)
	}
	h.ln = ln
	h.wg.Go(func() { h.accept(ln) })
	return nil
}

func (h *Server) accept(ln *net.UnixListener) {
	for {
		conn, err := ln.Accept()
		if err != nil && h.ctx.Err() != nil {
			return
		}
		if err != nil {
			tstime.Sleep(h.ctx, 100*time.Millisecond) // no descriptor is free
			continue
		}
		h.wg.Go(func() { h.answer(conn) })
	}
}

// answer replies to one hook, if that is still there.
func (h *Server) answer(conn net.Conn) {
	defer conn.Close()
	ctx, cancel := context.WithTimeout(h.ctx, podspec.MaxWait+Patience)
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var req request
	dec := json.NewDecoder(io.LimitReader(conn, 2*MaxResolvConf))
	if err := dec.Decode(&req); err != nil {
		return
	}
	go func() {
		_, _ = conn.Read(make([]byte, 1)) // it sends no more: it is gone
		cancel()
	}()
	var answer reply
	if req.ResolvConf != nil {
		answer.ResolvConf = h.setResolvConf(req)
	}
	if req.Wait > 0 {
		waiting, done := context.WithTimeout(ctx, req.Wait)
		defer done()
		err := h.pods.Await(waiting, req.PodUID)
		switch {
		case err != nil && waiting.Err() == nil:
			return // this process ends: the hook asks the next one
		case err != nil:
			answer.Down = errtext.OneLine(err)
		}
	}
	if ctx.Err() == nil {
		_ = json.NewEncoder(conn).Encode(answer) // a hook that is gone needs none
	}
}

// setResolvConf hands the pod's resolv.conf to the engine, and returns why that failed.
func (h *Server) setResolvConf(req request) string {
	if h.Resolver == nil {
		return "this version of tailscale-nri makes no resolv.conf"
	}
	if err := h.SetResolvConf(req.PodUID, req.ResolvConf); err != nil {
		h.log.Warn("a container starts with the cluster's names alone", "uid", req.PodUID, "err", err)
		return errtext.OneLine(err)
	}
	return ""
}

// self is this very program, even if its file was replaced.
const self = "/proc/self/exe"

// installHook puts a copy of this program into dir and returns its path. The name
// says what is in it, so that a container that was created under one version runs
// that one's.
func installHook(dir string) (string, error) {
	if err := checkExec(dir); err != nil {
		return "", err
	}
	sum, err := hashOf(self)
	if err != nil {
		return "", fmt.Errorf("reading this program: %w", err)
	}
	path := filepath.Join(dir, programPrefix+sum[:16])
	// One that a loss of power has cut off is created again.
	if there, err := hashOf(path); err == nil && there == sum {
		return path, nil
	}
	if err := copyProgram(path); err != nil {
		return "", fmt.Errorf("copying this program to %s, where the runtime runs it for pods that wait or have the tailnet's names: %w", dir, err)
	}
	return path, nil
}

// checkExec reports an error if the runtime could not run what is in dir. It cannot see
// every such case: runc 1.2 and later makes this container's mount of dir without the
// noexec of the host's (libcontainer/rootfs_linux.go, case "bind").
func checkExec(dir string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("looking at the filesystem of %s: %w", dir, err)
	}
	if fs.Flags&unix.ST_NOEXEC == 0 {
		return nil
	}
	return fmt.Errorf("nothing can be run from %s, which is mounted noexec, and the pod needs it: mount it without noexec, give %s a directory elsewhere (in the DaemonSet's hostPath too), or remove the annotation %s from the pod",
		filepath.Dir(dir), settings.StateDir, podspec.AnnotationWait)
}

func hashOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// copyProgram makes path a copy of this program, whole or not at all.
func copyProgram(path string) (err error) {
	from, err := os.Open(self)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.CreateTemp(filepath.Dir(path), newPrefix)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(to.Name())
		}
	}()
	_, err = io.Copy(to, from)
	if err = errors.Join(err, to.Chmod(0o500), to.Close()); err != nil {
		return err
	}
	return os.Rename(to.Name(), path)
}

// removeOldHooks removes the programs that no process hands out any more, and what a
// kill has left half written. One that runs is not disturbed by that.
func removeOldHooks(dir, current string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, entry := range entries {
		path, ours := filepath.Join(dir, entry.Name()), strings.HasPrefix(entry.Name(), programPrefix)
		if path == current || !ours && !strings.HasPrefix(entry.Name(), newPrefix) {
			continue
		}
		if info, err := entry.Info(); err == nil && (!ours || time.Since(info.ModTime()) > keepFor) {
			_ = os.Remove(path) // the next one's
		}
	}
}

// Resolver makes the resolv.conf of pods that ask for the tailnet's names.
type Resolver interface {
	// ResolvConf returns the path of the file that the pod's containers are to
	// mount, "" for a pod that does not ask for one. The file exists afterwards,
	// and is the same file for as long as the pod.
	ResolvConf(podUID string) (path string, err error)
	// SetResolvConf hands over what the pod's own resolv.conf says.
	SetResolvConf(podUID string, original []byte) error
}
