// SPDX-License-Identifier: BSD-3-Clause

package lab

import (
	"context"
	"errors"
	"fmt"
	"os/exec"

	"github.com/vishvananda/netlink"
)

// uplinkDNS is where slirp4netns(1) answers for the machine's own DNS servers.
const uplinkDNS = "10.0.2.3"

const uplinkLink = "tap0"

// startUplink leads a namespace's default route out through slirp4netns: what leaves by its tap0 leaves the machine
// from ordinary sockets of that process, so the machine's routes and firewall need nothing. It runs in the
// namespace's mount namespace, by which Down knows it, and in the machine's network.
func (c Config) startUplink(ctx context.Context, ns string) error {
	binary, err := exec.LookPath("slirp4netns")
	if err != nil {
		return errors.New("missing Debian package slirp4netns, which leads to a real tailnet; " +
			"install it with: apt-get install slirp4netns")
	}
	cmd := exec.Command("nsenter", "--mount="+c.nsFile(mountNS(ns)), "--", binary, "--netns-type=path",
		"--configure", "--mtu=1500", "--disable-host-loopback", c.nsFile(ns), uplinkLink)
	cmd.Env = c.environ()
	process, err := c.start("uplink-"+ns, cmd)
	if err != nil {
		return err
	}
	return process.Await(ctx, func(context.Context) error { return c.withLinks(ns, hasUplink) })
}

// hasUplink is nil when slirp4netns has set its default route, the last thing it does.
func hasUplink(links *netlink.Handle) error {
	link, err := links.LinkByName(uplinkLink)
	if err != nil {
		return err
	}
	routes, err := links.RouteList(link, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	for _, r := range routes {
		if r.Gw != nil {
			return nil
		}
	}
	return fmt.Errorf("%s has no default route yet", uplinkLink)
}
