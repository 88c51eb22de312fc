// SPDX-License-Identifier: BSD-3-Clause

package config

import (
	"fmt"
	"path/filepath"
	"testing"

	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/settings"
)

// TestPolicyFile: the file is part of the configuration.
func TestPolicyFile(t *testing.T) {
	dir := t.TempDir()
	lies := filepath.Join(dir, PolicyKey)
	plugintest.MountConfig(t, dir, settings.AuthKey, plugintest.Secret, settings.ClusterRanges, "10.0.0.0/8", settings.PolicyFile, lies, PolicyKey, "clusterRanges: [fd00::/64]\nrules: [{optIn: true}]")
	cfg, err := Read(plugintest.WithDir(dir))
	if err != nil || cfg.Policy == nil || len(cfg.Policy.RuleNames()) != 1 || fmt.Sprint(cfg.Ranges) != "[10.0.0.0/8 fd00::/64]" {
		t.Errorf("got %+v, %v, %v", cfg.Policy, cfg.Ranges, err)
	}
	plugintest.MountConfig(t, dir, settings.AuthKey, plugintest.Secret, PolicyKey, "rules: [{optIn: true}]")
	if _, err := Read(plugintest.WithDir(dir)); !plugintest.ErrContains(err, lies) || !plugintest.ErrContains(err, "set it to") {
		t.Errorf("one that is not used: %v", err)
	}
	plugintest.MountConfig(t, dir, settings.AuthKey, plugintest.Secret, settings.PolicyFile, lies)
	if _, err := Read(plugintest.WithDir(dir)); !plugintest.ErrContains(err, "reading the file that "+settings.PolicyFile+" names") || !plugintest.ErrContains(err, lies) {
		t.Errorf("a missing one: %v", err)
	}
	if _, err := Read(plugintest.Environment(map[string]string{settings.AuthKey: plugintest.Secret, settings.PolicyFile: "policy.yaml"})); !plugintest.ErrContains(err, `TS_POLICY_FILE is "policy.yaml": write an absolute path`) {
		t.Errorf("a relative path: %v", err)
	}
}
