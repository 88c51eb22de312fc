// SPDX-License-Identifier: BSD-3-Clause

package podtools

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"tailscale.com/client/local"
	"tailscale.com/client/tailscale/apitype"
)

const usageWhois = `tailscale-nri whois [flags] [NAMESPACE/]POD IP[:PORT]
Show which device and user the pod's node takes an address for. Ends with 1 if for none.
  -json, -o json         as JSON, in the form of tailscale whois -json
  -proto tcp|udp         of the port (both)
`

func whoisFlags(fs *flag.FlagSet) func(context.Context, *podClient, toolIO) error {
	asJSON, proto := formatFlag(fs), fs.String("proto", "", "")
	return func(ctx context.Context, c *podClient, out toolIO) error {
		forMachines, err := asJSON()
		if err != nil {
			return err
		}
		if !slices.Contains([]string{"", "tcp", "udp"}, *proto) {
			return fmt.Errorf("-proto is %q: write tcp or udp", *proto)
		}
		if _, err := c.view(ctx); err != nil {
			return err
		}
		who, err := c.WhoIsProto(ctx, *proto, out.args[0])
		switch {
		case errors.Is(err, local.ErrPeerNotFound):
			return noAnswer{fmt.Errorf("%s is not the address of a peer of %s", out.args[0], c.name)}
		case err != nil:
			return fmt.Errorf("asking who %s is: %w", out.args[0], err)
		case forMachines:
			return printJSON(out.stdout, who)
		}
		return printWhois(out.stdout, who)
	}
}

// printWhois writes it as tailscale whois does.
func printWhois(w io.Writer, who *apitype.WhoIsResponse) error {
	n := who.Node
	tw := tabwriter.NewWriter(w, 10, 5, 5, ' ', 0)
	fmt.Fprintf(tw, "Machine:\n  Name:\t%s\n  ID:\t%s\n  Addresses:\t%s\n", strings.TrimSuffix(n.Name, "."), n.StableID, n.Addresses)
	if routes := n.AllowedIPs[min(len(n.AllowedIPs), len(n.Addresses)):]; len(routes) > 0 {
		fmt.Fprintf(tw, "  AllowedIPs:\t%s\n", routes)
	}
	if n.IsTagged() {
		fmt.Fprintf(tw, "  Tags:\t%s\n", strings.Join(n.Tags, ", "))
	} else {
		fmt.Fprintf(tw, "User:\n  Name:\t%s\n  ID:\t%d\n", who.UserProfile.LoginName, who.UserProfile.ID)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if len(who.CapMap) == 0 {
		return nil
	}
	fmt.Fprintln(w, "Capabilities:")
	for _, name := range slices.Sorted(maps.Keys(who.CapMap)) {
		fmt.Fprintf(w, "  - %s", name)
		if values := who.CapMap[name]; len(values) > 0 {
			text, err := json.MarshalIndent(values, "      ", "  ")
			if err != nil {
				return err
			}
			fmt.Fprintf(w, ":\n      %s", text)
		}
		fmt.Fprintln(w)
	}
	return nil
}
