// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/control"
	"tailscale-nri/k3d/lab/demo"
	"tailscale-nri/k3d/lab/scene"
)

// roleVar makes the test binary another program.
const roleVar = "TAILSCALE_NRI_E2E_ROLE"

func TestMain(m *testing.M) {
	role := os.Getenv(roleVar)
	if role == "" {
		os.Exit(m.Run())
	}
	if err := playOnOwn(context.Background(), role == "keep"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// TestOwnTailnet plays the demo on a tailnet that is not the lab's, as on one of the user's: over the uplink, with
// OAuth credentials, tags and URLs from outside. The tailnet is in a network namespace of its own, which stands for
// the internet. Once the demo ends by itself, once it is left up and ended afterwards.
func TestOwnTailnet(t *testing.T) {
	t.Parallel()
	for _, role := range []string{"play", "keep"} {
		t.Run(role, func(t *testing.T) { testOwn(t, role) })
	}
}

func testOwn(t *testing.T, role string) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	script := "ip link set lo up && ip addr add " + ownAddr + "/32 dev lo && exec " + self
	cmd := exec.CommandContext(t.Context(), "unshare", "--net", "--", "sh", "-c", script)
	cmd.Env = append(os.Environ(), roleVar+"="+role)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "your own tailnet, at http://"+ownAddr) {
		t.Errorf("%v\n%s", err, out)
	}
	if left, err := lab.Remains(ownConfig()); err != nil || len(left) > 0 {
		t.Errorf("left after the demo: %q, %v", left, err)
	}
}

// ownAddr is private, since Tailscale's client goes over to HTTPS elsewhere.
const ownAddr = "10.201.69.1"

func ownConfig() lab.Config { return lab.Config{Name: "tsnri-e2e-own", Dir: "/run/tsnri-e2e-own"} }

// playOnOwn is the program in that namespace: it gives the tailnet, plays, and looks for devices that were left there.
func playOnOwn(ctx context.Context, keep bool) error {
	const tag = "tag:mine"
	plane, err := control.Start(control.Config{Addr: netip.MustParseAddr(ownAddr), Tags: []string{tag},
		OAuthClientID: "own-client", OAuthClientSecret: "own-secret"})
	if err != nil {
		return err
	}
	defer plane.Close()
	cfg := scene.Config{Lab: ownConfig(), Tags: []string{tag}, Own: &scene.OwnTailnet{
		ClientID: "own-client", ClientSecret: "own-secret", APIURL: plane.APIURL(), LoginServer: plane.ControlURL(),
	}}
	if err := demo.Run(ctx, demo.Config{Config: cfg}, keep); err != nil {
		return err
	}
	if keep {
		if err := scene.End(ctx, cfg); err != nil {
			return err
		}
	}
	if left := plane.Devices(); len(left) > 0 {
		return fmt.Errorf("left in the tailnet: %+v", left)
	}
	if keys := plane.Counters().KeysMinted; keys < 3 {
		return fmt.Errorf("expected a key for each of two pods and the peer, and perhaps some that lay ready, saw %d minted", keys)
	}
	return nil
}
