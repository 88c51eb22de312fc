// SPDX-License-Identifier: BSD-3-Clause

// Command coredns is the lab's cluster DNS: CoreDNS with the plugins that the lab's Corefile names, and without the SDKs
// of three clouds that its own main package links.
package main

import (
	_ "github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
)

func main() { coremain.Run() }
