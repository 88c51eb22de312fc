// SPDX-License-Identifier: BSD-3-Clause

package nri

import (
	"cmp"
	"errors"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/api"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/ocihook"
	"tailscale-nri/nri-plugin/internal/podspec"
)

const (
	// resolvConf is where every libc looks.
	resolvConf = "/etc/resolv.conf"
	// apiDir is where Tailscale's command line and client/local look for
	// tailscaled.sock on Linux.
	apiDir = "/var/run/tailscale"
)

// asksForContainers reports whether a pod asks for something that its containers
// get. If not, a container costs a look-up.
func asksForContainers(f engine.Features) bool { return f.DNS || f.Socket || f.Wait != 0 }

// adjust returns what is to be changed of a container, nil if that is nothing. It
// goes by what was settled when the sandbox was attached.
func (p *Plugin) adjust(sb *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, error) {
	asked, ok := p.Pods.FeaturesOf(sb.GetUid(), sb.GetId())
	if !ok || !asksForContainers(asked) {
		return nil, nil
	}
	var err error
	a := &adjustment{sb: sb, c: c, out: &api.ContainerAdjustment{}, hook: ocihook.Call{
		PodUID: sb.GetUid(), Pod: sb.GetNamespace() + "/" + sb.GetName(),
		Wait: asked.Wait, Fails: asked.WaitFails, Value: cmp.Or(sb.GetAnnotations()[podspec.AnnotationWait], asked.Wait.String()),
	}}
	if asked.Socket {
		err = errors.Join(err, a.mountSocket(p.Pods))
	}
	if p.Resolver != nil && asked.DNS {
		err = errors.Join(err, a.replaceResolvConf(p.Resolver))
	}
	if a.hook.Needed() {
		err = errors.Join(err, a.addHook(p.Hooks))
	}
	if err != nil || !a.changed {
		return nil, err
	}
	return a.out, nil
}

// adjustment collects the changes of one container.
type adjustment struct {
	sb      *api.PodSandbox
	c       *api.Container
	out     *api.ContainerAdjustment
	hook    ocihook.Call
	changed bool
}

// mountSocket mounts the directory of the pod's LocalAPI. A container that has
// a mount of its own there, or below it, keeps it.
func (a *adjustment) mountSocket(pods podSet) error {
	if a.mountWhere(func(at string) bool { return at == apiDir || strings.HasPrefix(at, apiDir+"/") }) != nil {
		return nil
	}
	dir, err := pods.SocketDir(a.sb.GetUid())
	if err != nil {
		return err
	}
	a.changed = true
	a.out.AddMount(&api.Mount{
		Source: dir, Destination: apiDir, Type: "bind",
		Options: []string{"rbind", "rprivate", "ro", "nosuid", "nodev", "noexec"},
	})
	return nil
}

// replaceResolvConf mounts a file of the engine's in place of the one that the
// runtime has made for the sandbox. A container that has another keeps it. It is
// read-only where the runtime's is not: the engine writes the file and reads what it
// has written, and lies on a disk that all pods need.
func (a *adjustment) replaceResolvConf(r ocihook.Resolver) error {
	was := a.mountAt(resolvConf)
	if was == nil || !isSandboxFile(was.GetSource(), a.sb.GetId()) {
		return nil
	}
	path, err := r.ResolvConf(a.sb.GetUid())
	if err != nil || path == "" {
		return err
	}
	a.changed = true
	options := slices.DeleteFunc(slices.Clone(was.GetOptions()), func(o string) bool { return o == "rw" || o == "ro" })
	options = append(options, "ro")
	if hasUserNamespace(a.sb) && !slices.Contains(options, optionIDMap) {
		options = append(options, optionIDMap)
	}
	a.hook.ResolvFrom, a.hook.ResolvTo = was.GetSource(), path
	a.out.RemoveMount(resolvConf)
	a.out.AddMount(&api.Mount{Source: path, Destination: resolvConf, Type: was.GetType(), Options: options})
	return nil
}

// optionIDMap has a mount show root's files as the container's root's. It fails the
// start of a container that has no user namespace (runc 1.5.2).
const optionIDMap = "idmap"

// mountAt returns the container's mount at a path, nil if there is none.
func (a *adjustment) mountAt(path string) *api.Mount {
	return a.mountWhere(func(at string) bool { return at == path })
}

// mountWhere is the first of the container's mounts that is at a path that is meant. In
// most images /var/run is a link to /run.
func (a *adjustment) mountWhere(meant func(path string) bool) *api.Mount {
	for _, m := range a.c.GetMounts() {
		if at := filepath.Clean(m.GetDestination()); meant(at) || meant("/var"+at) {
			return m
		}
	}
	return nil
}

// isSandboxFile reports whether a resolv.conf lies in a directory of the sandbox,
// as containerd (…/sandboxes/ID/resolv.conf) and CRI-O (…/ID/userdata/resolv.conf)
// have it.
func isSandboxFile(path, sandboxID string) bool {
	return sandboxID != "" && filepath.Base(path) == filepath.Base(resolvConf) &&
		slices.Contains(strings.Split(filepath.Dir(path), "/"), sandboxID)
}

// hasUserNamespace reports whether the pod's root is none on the host.
func hasUserNamespace(sb *api.PodSandbox) bool {
	return slices.ContainsFunc(sb.GetLinux().GetNamespaces(), func(ns *api.LinuxNamespace) bool { return ns.GetType() == "user" })
}

// addHook has the runtime run this program before the container's own.
//
// A createRuntime hook runs in the host's namespaces, as root, and holds up nothing
// but its container: no lock of NRI's, and no other pod. Before containerd 2.3.2 it
// holds up calls about the other containers of its pod too: the shim has its lock while
// it creates one (cmd/containerd-shim-runc-v2/task/service.go, Create). With no
// environment of its own it would have all of containerd's. Its timeout is a last
// resort: runc kills the hook, and fails the start, without saying why.
func (a *adjustment) addHook(h *ocihook.Server) error {
	program, err := h.Prepare()
	if err != nil {
		return err
	}
	a.changed = true
	a.out.AddHooks(&api.Hooks{CreateRuntime: []*api.Hook{{
		Path: program, Args: []string{program, ocihook.Command, a.hook.Encode()}, Env: []string{"GOMAXPROCS=1"},
		Timeout: api.Int(int((a.hook.Wait + ocihook.ResolvPatience + ocihook.Patience).Seconds())),
	}}})
	return nil
}
