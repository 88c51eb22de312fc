// SPDX-License-Identifier: BSD-3-Clause

// Package settings names the variables that the program reads, with their defaults
// and the line that -help has of each.
//
// It reads none of them: package config does.
package settings

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// Setting is one variable, of the environment or, unless IsEnvOnly, of the
// directory that TS_CONFIG_DIR names. An empty one counts as not set.
type Setting struct {
	Key     string
	Default string // value where it is not set
	Doc     string
}

// The variables that are read.
const (
	OAuthID         = "TS_OAUTH_CLIENT_ID"
	OAuthSecret     = "TS_OAUTH_CLIENT_SECRET"
	IDTokenFile     = "TS_ID_TOKEN_FILE"
	AuthKey         = "TS_AUTHKEY"
	LoginServer     = "TS_LOGIN_SERVER"
	APIURL          = "TS_API_URL"
	AuthKeyTTL      = "AUTH_KEY_TTL"
	HTTPSProxy      = "HTTPS_PROXY"
	HTTPProxy       = "HTTP_PROXY"
	NoProxy         = "NO_PROXY"
	ClusterName     = "CLUSTER_NAME"
	Tags            = "TS_TAGS"
	SweepAfter      = "TS_SWEEP_AFTER"
	LocalDelivery   = "TS_LOCAL_DELIVERY"
	ClusterRanges   = "TS_CLUSTER_RANGES"
	RuntimeHandlers = "TS_RUNTIME_HANDLERS"
	PolicyFile      = "TS_POLICY_FILE"
	StateSecrets    = "TS_STATE_SECRETS"
	KubeStatus      = "TS_KUBERNETES_STATUS"
	StateDir        = "TS_STATE_DIR"
	StatusSocket    = "TS_STATUS_SOCKET"
	MetricsAddr     = "TS_METRICS_ADDR"
	NRISocket       = "NRI_SOCKET"
	PodUID          = "POD_UID"
	NodeName        = "NODE_NAME"
	LogLevel        = "LOG_LEVEL"
	LogFormat       = "LOG_FORMAT"
	ConfigDir       = "TS_CONFIG_DIR"
)

// All are the variables with their defaults, in the order of -help.
func All() []Setting {
	return []Setting{
		{OAuthID, "", "OAuth client that mints a key for each pod"},
		{OAuthSecret, "", "its secret"},
		{IDTokenFile, "", "instead of the secret: file with a ServiceAccount token"},
		{AuthKey, "", "instead of all three: one reusable auth key for all pods"},
		{LoginServer, "", "control server; Tailscale's own where empty"},
		{APIURL, "https://api.tailscale.com", "Tailscale's API"},
		{AuthKeyTTL, "5m", "how long a minted key is good for"},
		{HTTPSProxy, "", "proxy to the API, an https control server and DERP"},
		{HTTPProxy, "", "proxy to an http control server"},
		{NoProxy, "", "hosts, domains and networks that are reached without a proxy"},
		{ClusterName, "k8s", "first part of a pod's default hostname"},
		{Tags, "tag:k8s-pod", "a pod's default tags, comma separated; none with " + AuthKey},
		{SweepAfter, "168h", "how old a dead host's devices get; 0 keeps all"},
		{LocalDelivery, "true", "packets between pods of one host need no WireGuard; true or false"},
		{ClusterRanges, "", "the cluster's CIDRs, comma separated: they stay on eth0"},
		{RuntimeHandlers, "runc,crun,youki,nvidia,nvidia-cdi,nvidia-legacy,nvidia-experimental", "known runtime handlers"},
		{PolicyFile, "", "which pods get a node and may ask for what; YAML"},
		{StateSecrets, "false", "keep StatefulSets' devices in Secrets of this namespace"},
		{KubeStatus, "false", "show each pod's node in its Events and its status"},
		{StateDir, "/var/lib/tailscale-nri", "identities of the pods' nodes"},
		{StatusSocket, "/run/tailscale-nri/status.sock", "where the status is served"},
		{MetricsAddr, "", "address:port to serve Prometheus metrics on; none where empty"},
		{NRISocket, "/var/run/nri/nri.sock", "containerd's NRI socket"},
		{PodUID, "", "of the pod this runs in, which containerd must list"},
		{NodeName, "", "of the Kubernetes node, for " + StateSecrets + " and Events"},
		{LogLevel, "info", "trace, debug, info, warn or error"},
		{LogFormat, "text", "text or json"},
		{ConfigDir, "", "directory with a file for each variable that has no flag"},
	}
}

// Print writes the variables as a table.
func Print(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range All() {
		standard := ""
		if s.Default != "" {
			standard = " (" + s.Default + ")"
		}
		if len(s.Doc+standard) > 74 { // with the key's column, a line of the screen
			standard = "\n  \t" + standard[1:]
		}
		fmt.Fprintf(tw, "  %s\t%s%s\n", s.Key, s.Doc, standard)
	}
	tw.Flush()
}

// IsEnvOnly reports whether the environment alone sets a variable. These are the
// paths that must not change while the process runs: the mounts of its pod, and the
// probes, which would end a process that they do not find.
func IsEnvOnly(key string) bool {
	return slices.Contains([]string{ConfigDir, StateDir, StatusSocket, NRISocket, PodUID, NodeName}, key)
}
