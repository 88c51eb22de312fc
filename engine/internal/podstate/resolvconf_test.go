// SPDX-License-Identifier: BSD-3-Clause

package podstate

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tailscale-nri/engine/internal/nstest"

	"golang.org/x/sys/unix"
)

func TestResolvConf(t *testing.T) {
	long := strings.Repeat("a", 60) + "."
	for _, tt := range []struct {
		name, original string
		tailnet        []string
		spare          bool
		want           string // without the first line
		left           int
	}{
		{"of the kubelet", "search a.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5 edns0\n", []string{"x.ts.net"}, false,
			"nameserver 100.100.100.100\nsearch a.svc.cluster.local svc.cluster.local x.ts.net\noptions ndots:5 edns0\n", 0},
		{"nothing of the tailnet", "nameserver 10.96.0.10\nsearch b\nsearch a\n", nil, false, "nameserver 100.100.100.100\nsearch a\n", 0},
		{"no search domains", "nameserver 10.96.0.10\n", []string{"x.ts.net"}, false, "nameserver 100.100.100.100\nsearch x.ts.net\n", 0},
		{"no search domains at all", "nameserver 10.96.0.10\n", nil, false, "nameserver 100.100.100.100\n", 0},
		{"IPv6 only", "nameserver fd00::a\n", nil, false, "nameserver fd7a:115c:a1e0::53\n", 0},
		{"both families", "nameserver fd00::a\nnameserver 10.96.0.10\n", nil, false, "nameserver 100.100.100.100\n", 0},
		{"without NAT", "nameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.0.0.3\n", nil, true,
			"nameserver 100.100.100.100\nnameserver 10.0.0.1\nnameserver 10.0.0.2\n", 0},
		{"the same domain", "nameserver 10.96.0.10\nsearch X.ts.net.\n", []string{"x.ts.net", "y"}, false, "nameserver 100.100.100.100\nsearch X.ts.net. y\n", 0},
		{"what is not known", "# a comment\n;another\nnameserver 10.96.0.10\nsortlist 10.0.0.0\ndomain d\n", nil, false,
			"nameserver 100.100.100.100\nsearch d\nsortlist 10.0.0.0\n", 0},
		{"no room", "nameserver 10.96.0.10\nsearch " + long + long + long + "a " + long[2:] + "\n", []string{"tail.ts.net", "x"}, false,
			"nameserver 100.100.100.100\nsearch " + long + long + long + "a " + long[2:] + " x\n", 1},
		{"among others", "nameserver 100.100.100.100\nnameserver 10.0.0.1\nnameserver fe80::1%eth0\nnameserver nonsense\n", nil, true,
			"nameserver 100.100.100.100\nnameserver 10.0.0.1\n", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := ParseResolvConf([]byte(tt.original))
			if err != nil {
				t.Fatal(err)
			}
			data, left := c.Format(tt.tailnet, tt.spare)
			_, got, _ := strings.Cut(string(data), "\n")
			if got != tt.want || len(left) != tt.left {
				t.Errorf("got\n%s\nleft out %v; want\n%s\nleft out %d", got, left, tt.want, tt.left)
			}
		})
	}
	c, err := ParseResolvConf([]byte(strings.Repeat("nameserver 10.0.0.1\n", 9)))
	if err != nil || len(c.Nameservers) != 3 {
		t.Errorf("nine nameservers: %+v, %v; want as many as a C library asks", c, err)
	}
	for _, bad := range []string{"", "nameserver ::ffff:100.100.100.100\n", "search a\n", "nameserver 100.100.100.100\nnameserver fd7a:115c:a1e0::53\n", "nameserver fe80::1%eth0\n", "nameserver\n"} {
		if c, err := ParseResolvConf([]byte(bad)); err == nil || !strings.Contains(err.Error(), "dnsPolicy: ClusterFirst") {
			t.Errorf("%q: %+v, %v", bad, c, err)
		}
	}
}

// A file that is mounted somewhere is written in place.
func TestRewriteFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	var was os.FileInfo
	for i, content := range []string{"long and\nlonger\n", "short\n", "", "long and\nlonger\n", "long and\nlonger\n"} {
		if i == 2 { // a pod has filled it
			if err := os.Truncate(path, 1<<40); err != nil {
				t.Fatal(err)
			}
		}
		written, err := RewriteFile(path, []byte(content))
		if same := i == 4; err != nil || same != (written == 0) && content != "" {
			t.Errorf("%q: %d bytes were written, %v", content, written, err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != content {
			t.Errorf("%q, %v; want %q", got, err, content)
		}
		is, err := os.Stat(path)
		if err != nil || was != nil && !os.SameFile(was, is) || is.Mode() != 0o644 {
			t.Errorf("%v, %v", is, err)
		}
		was = is
	}
}

// A lease of a program of the pod on the file holds up nothing.
func TestRewriteFileLeased(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if _, err := RewriteFile(path, []byte("before\n")); err != nil {
		t.Fatal(err)
	}
	f := nstest.Lease(t, path)
	if _, err := RewriteFile(path, []byte("after\n")); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("with a lease: %v", err)
	}
	f.Close()
	if _, err := RewriteFile(path, []byte("after\n")); err != nil {
		t.Error(err)
	}
}

// With a full disk the file stays as it was.
func TestRewriteFileDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=8k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	path := filepath.Join(dir, "resolv.conf")
	if _, err := RewriteFile(path, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "rest"), make([]byte, 64<<10), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filling the disk: %v", err)
	}
	_, err := RewriteFile(path, []byte("nameserver 100.100.100.100\n"))
	got, readErr := os.ReadFile(path)
	if !errors.Is(err, unix.ENOSPC) || readErr != nil || len(got) > 0 {
		t.Errorf("%v; the file has %q, %v", err, got, readErr)
	}
}
