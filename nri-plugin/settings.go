// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// setting is one variable, of the environment or, unless it is fixed, of the
// directory that TS_CONFIG_DIR names. An empty one counts as not set.
type setting struct {
	key          string
	defaultValue string // value where it is not set
	doc          string
}

// The variables that are read.
const (
	envOAuthID      = "TS_OAUTH_CLIENT_ID"
	envOAuthSecret  = "TS_OAUTH_CLIENT_SECRET"
	envIDTokenFile  = "TS_ID_TOKEN_FILE"
	envAuthKey      = "TS_AUTHKEY"
	envLoginServer  = "TS_LOGIN_SERVER"
	envAPIURL       = "TS_API_URL"
	envAuthKeyTTL   = "AUTH_KEY_TTL"
	envHTTPSProxy   = "HTTPS_PROXY"
	envHTTPProxy    = "HTTP_PROXY"
	envNoProxy      = "NO_PROXY"
	envCluster      = "CLUSTER_NAME"
	envTags         = "TS_TAGS"
	envSweepAfter   = "TS_SWEEP_AFTER"
	envLocal        = "TS_LOCAL_DELIVERY"
	envRanges       = "TS_CLUSTER_RANGES"
	envHandlers     = "TS_RUNTIME_HANDLERS"
	envPolicyFile   = "TS_POLICY_FILE"
	envStateSecrets = "TS_STATE_SECRETS"
	envKubeStatus   = "TS_KUBERNETES_STATUS"
	envStateDir     = "TS_STATE_DIR"
	envStatusSocket = "TS_STATUS_SOCKET"
	envMetricsAddr  = "TS_METRICS_ADDR"
	envNRISocket    = "NRI_SOCKET"
	envPodUID       = "POD_UID"
	envNodeName     = "NODE_NAME"
	envLogLevel     = "LOG_LEVEL"
	envLogFormat    = "LOG_FORMAT"
	envConfigDir    = "TS_CONFIG_DIR"
)

// settings are the variables with their defaults, in the order of -help.
func settings() []setting {
	return []setting{
		{envOAuthID, "", "OAuth client that mints a key for each pod"},
		{envOAuthSecret, "", "its secret"},
		{envIDTokenFile, "", "instead of the secret: file with a ServiceAccount token"},
		{envAuthKey, "", "instead of all three: one reusable auth key for all pods"},
		{envLoginServer, "", "control server; Tailscale's own where empty"},
		{envAPIURL, "https://api.tailscale.com", "Tailscale's API"},
		{envAuthKeyTTL, "5m", "how long a minted key is good for"},
		{envHTTPSProxy, "", "proxy to the API, an https control server and DERP"},
		{envHTTPProxy, "", "proxy to an http control server"},
		{envNoProxy, "", "hosts, domains and networks that are reached without a proxy"},
		{envCluster, "k8s", "first part of a pod's default hostname"},
		{envTags, "tag:k8s-pod", "a pod's default tags, comma separated; none with " + envAuthKey},
		{envSweepAfter, "168h", "how old a dead machine's devices get; 0 keeps all"},
		{envLocal, "true", "packets between pods of one host need no WireGuard; true or false"},
		{envRanges, "", "the cluster's CIDRs, comma separated: they stay on eth0"},
		{envHandlers, "runc,crun,youki,nvidia,nvidia-cdi,nvidia-legacy,nvidia-experimental", "known runtime handlers"},
		{envPolicyFile, "", "which pods get a node and may ask for what; YAML"},
		{envStateSecrets, "false", "keep StatefulSets' devices in Secrets of this namespace"},
		{envKubeStatus, "false", "show each pod's node in its Events and its status"},
		{envStateDir, "/var/lib/tailscale-nri", "identities of the pods' nodes"},
		{envStatusSocket, "/run/tailscale-nri/status.sock", "where the status is served"},
		{envMetricsAddr, "", "address:port to serve Prometheus metrics on; none where empty"},
		{envNRISocket, "/var/run/nri/nri.sock", "containerd's NRI socket"},
		{envPodUID, "", "of the pod this runs in, which containerd must list"},
		{envNodeName, "", "of the Kubernetes node, for " + envStateSecrets + " and Events"},
		{envLogLevel, "info", "trace, debug, info, warn or error"},
		{envLogFormat, "text", "text or json"},
		{envConfigDir, "", "directory with a file for each variable that has no flag"},
	}
}

// printSettings writes the variables as a table.
func printSettings(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range settings() {
		standard := ""
		if s.defaultValue != "" {
			standard = " (" + s.defaultValue + ")"
		}
		if len(s.doc+standard) > 74 { // with the key's column, a line of the screen
			standard = "\n  \t" + standard[1:]
		}
		fmt.Fprintf(tw, "  %s\t%s%s\n", s.key, s.doc, standard)
	}
	tw.Flush()
}
