// SPDX-License-Identifier: BSD-3-Clause

package kube

import (
	"context"
	_ "embed"
	"strings"
)

//go:embed dns.yaml
var dnsYAML string

// startDNS applies CoreDNS with the Service that every kubelet names in its pods' resolv.conf.
func (c *Cluster) startDNS(ctx context.Context) error {
	return c.Apply(ctx, strings.NewReplacer("@IMAGE@", CoreDNSImage, "@IP@", dnsIP).Replace(dnsYAML))
}
