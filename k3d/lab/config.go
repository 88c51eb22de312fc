// SPDX-License-Identifier: BSD-3-Clause

package lab

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"time"
)

// The lab's addresses exist only in its namespaces. IPv4 is private, since a Tailscale client goes over to HTTPS at its
// second call of a control plane that is plain HTTP elsewhere (control/ts2021/client.go, isPrivateHost).
const (
	NetIP4  = "172.30.69.1"
	NodeIP4 = "172.30.69.11"
	PeerIP4 = "172.30.69.21" // of the first peer; the others follow

	NetIP6  = "2001:db8:6e72:69::1"
	NodeIP6 = "2001:db8:6e72:69::11"
	PeerIP6 = "2001:db8:6e72:69::21"

	PodSubnet4 = "10.86.0.0/24"
	PodSubnet6 = "fd00:6e72:69::/64"
)

// Config says where a lab stands. The zero value is a usable lab.
type Config struct {
	// Name marks what the lab makes outside of Dir: the cgroup /Name and the lock. Two labs need two names.
	// "" means "tsnri".
	Name string
	// Dir holds everything else. At most 60 bytes long, since unix sockets stand in it. "" means $LAB_DIR, and
	// without that /run/Name.
	Dir string
	// Build holds bin/, cni/ and image/ as tools.mk makes them. "" means .build in the module that the working
	// directory belongs to.
	Build string
	// Plugin is the binary that StartPlugin starts. "" means bin/tailscale-nri below Build.
	Plugin string
	// NRIRequestTimeout is how long containerd waits for a plugin's hook. 0 means 2 s, containerd's default.
	NRIRequestTimeout time.Duration
	// Bare makes a lab without a node, for AddNode to make those that are wanted.
	Bare bool
	// Uplink leads the node and the peers out to the internet, for a tailnet that is not the lab's own. It takes the
	// Debian package slirp4netns and changes nothing of the machine's own network. false means that nothing leaves
	// the lab.
	Uplink bool
	// Logger hears what the lab does, step by step. nil means silence.
	Logger *slog.Logger
}

// maxDir leaves room below the 107 bytes of a unix socket's path for the longest of ours,
// node/run/containerd/containerd.sock.ttrpc.
const maxDir = 60

func (c Config) withDefaults() (Config, error) {
	if c.Name == "" {
		c.Name = "tsnri"
	}
	if c.Dir == "" {
		c.Dir = os.Getenv("LAB_DIR")
	}
	if c.Dir == "" {
		c.Dir = filepath.Join("/run", c.Name)
	}
	if c.NRIRequestTimeout == 0 {
		c.NRIRequestTimeout = 2 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Build == "" {
		root, err := moduleRoot()
		if err != nil {
			return c, err
		}
		c.Build = filepath.Join(root, ".build")
	}
	return c, c.check()
}

// nameForm keeps a name usable in a path and in a cgroup.
var nameForm = regexp.MustCompile(`^[a-z][a-z0-9-]{0,30}$`)

func (c Config) check() error {
	if !nameForm.MatchString(c.Name) {
		return fmt.Errorf("LAB_NAME=%q is not a valid name; give lower-case letters, digits and hyphens, at most 31", c.Name)
	}
	if !filepath.IsAbs(c.Dir) || filepath.Clean(c.Dir) != c.Dir || c.Dir == "/" {
		return fmt.Errorf("LAB_DIR=%q is not a clean absolute path; give one such as /run/tsnri", c.Dir)
	}
	if len(c.Dir) > maxDir {
		return fmt.Errorf("LAB_DIR=%q has %d bytes, at most %d leave room for unix sockets; give a shorter one",
			c.Dir, len(c.Dir), maxDir)
	}
	if os.Geteuid() != 0 {
		return errors.New("not root: the lab makes namespaces and mounts; run it as root")
	}
	return nil
}

// moduleRoot is the nearest directory upwards that holds a go.mod.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("finding the module: %w", err)
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("no go.mod above the working directory; run the lab inside the project or set Config.Build")
}

func (c Config) path(elem ...string) string {
	return filepath.Join(append([]string{c.Dir}, elem...)...)
}

func (c Config) bin(name string) string   { return filepath.Join(c.Build, "bin", name) }
func (c Config) image(name string) string { return filepath.Join(c.Build, "image", name) }

// BuildDir is where the binaries are: Build, or what it means when it is "".
func (c Config) BuildDir() (string, error) {
	c, err := c.withDefaults()
	return c.Build, err
}

// PluginPath is the binary that StartPlugin starts.
func (c Config) PluginPath() (string, error) {
	c, err := c.withDefaults()
	return cmp.Or(c.Plugin, c.bin("tailscale-nri")), err
}

// checkTools says which binary is missing before anything is made.
func (c Config) checkTools() error {
	return CheckBuilt("lab-tools",
		c.bin("containerd"), c.bin("containerd-shim-runc-v2"), c.bin("ctr"), c.bin("runc"),
		c.bin("tailscaled"), c.bin("tailscale"), c.bin("lab"), c.image("pause"), c.image("labtool"),
		filepath.Join(c.Build, "cni", "bridge"), filepath.Join(c.Build, "cni", "host-local"),
		filepath.Join(c.Build, "cni", "loopback"),
	)
}

// CheckBuilt says which of the files is missing that a make target builds.
func CheckBuilt(target string, files ...string) error {
	for _, file := range files {
		if _, err := os.Stat(file); err != nil {
			return fmt.Errorf("missing %s; build it with: make %s", file, target)
		}
	}
	return nil
}
