// SPDX-License-Identifier: BSD-3-Clause

package exporter

// Prefix begins the name of every metric of the program.
const Prefix = "tailscale_nri_"

// Kinds of metrics.
const (
	Counter   = "counter"
	Gauge     = "gauge"
	Histogram = "histogram"
)

// Family is the common part of metrics of one name.
type Family struct {
	Name   string
	Kind   string
	Labels []string
	Help   string
}

// perPod returns the labels that tell pods apart. A pod's series end with it.
func perPod(more ...string) []string { return append([]string{"namespace", "pod"}, more...) }

// Families are all metrics. Those of Go's runtime and of the process
// (collectors.NewGoCollector, NewProcessCollector) are exported with them.
var Families = []Family{
	buildInfo, restarts, registered, standingBy, configured, withoutNode, hooks,
	engineAnswers, unanswered, nodes, stages, ready, late, sessionRestarts, registrations,
	deleted, sweeps, sweepDue, apiCalls, keysMinted,
	podUp, podWritten, podBytes, podPackets, podDrops, podCutRefusals,
	podControl, podKeyExpiry, podHome, podPeers, podSessions, podHandshake,
}

var (
	buildInfo = Family{Prefix + "build_info", Gauge, []string{"version", "tailscale_version", "go_version"},
		"1, with the versions of the program, of tailscale.com in it, and of Go."}
	restarts = Family{Prefix + "supervisor_restarts_total", Counter, nil,
		"How often the supervisor has started the serving process again: after it died, or for a changed configuration. Other counters begin again with it."}
	registered = Family{Prefix + "registered", Gauge, nil,
		"Whether the plugin is registered with the container runtime and has caught up with its pods."}
	standingBy = Family{Prefix + "standing_by", Gauge, nil,
		"Whether another process serves this host's pods and this one waits to take over."}
	configured = Family{Prefix + "configuration_valid", Gauge, nil,
		"Whether the configuration can be used; 0 also while an earlier one is in use because a changed one is bad."}
	withoutNode = Family{Prefix + "pods_without_node", Gauge, nil,
		"Pods that opted in, ran before the plugin could refuse them, and go on without a node."}
	hooks = Family{Prefix + "hook_duration_seconds", Histogram, []string{"event", "result"},
		"Duration of the runtime's events in the plugin, by result (ok, error, timeout); RemoveContainer, which is answered at once, is not timed. The runtime waits 2 s."}

	engineAnswers = Family{Prefix + "engine_answers", Gauge, nil,
		"Whether the engine said in time how its nodes are; where it did not, this scrape has no series of nodes."}
	unanswered = Family{Prefix + "nodes_unanswered", Gauge, nil,
		"Nodes whose backend hangs: peers, sessions, handshakes, key and home region of their pods are of an earlier scrape."}
	nodes = Family{Prefix + "nodes", Gauge, []string{"state"},
		"Nodes by state: Pending, Running, Stopped (the sandbox has ended), Leaving (the device is being deleted)."}
	stages = Family{Prefix + "attach_stage_duration_seconds", Histogram, []string{"stage"},
		"How long a node took, of those that this process has attached, from the stage before to: attached (the link is there, if not whole yet), registered (the control plane let it in), addressed (ts0 has its addresses), reachable (it is Running)."}
	ready = Family{Prefix + "ready_duration_seconds", Histogram, nil,
		"Time from the attach to Running, of nodes that this process has attached."}
	late = Family{Prefix + "late_attaches_total", Counter, []string{"by"},
		"Pods that had started without their node and got it afterwards: by the runtime's list at a registration (list), or when a container was created (container)."}
	sessionRestarts = Family{Prefix + "session_restarts_total", Counter, nil,
		"How often serving a node began again, since its backend had to end or did not come up."}
	registrations = Family{Prefix + "registrations_total", Counter, []string{"kind"},
		"Registrations with the control plane: first (a new device), again (the device was deleted, or its key had expired)."}
	deleted = Family{Prefix + "devices_deleted_total", Counter, []string{"reason"},
		"Devices deleted: pod_ended (the node's own), swept (of a host that died), name_taken (an earlier one of the same pod)."}
	sweeps = Family{Prefix + "sweeps_total", Counter, []string{"result"},
		"Sweeps for devices of hosts that died."}
	sweepDue = Family{Prefix + "sweep_devices_due", Gauge, nil,
		"Devices that the last sweep found to delete."}
	apiCalls = Family{Prefix + "api_requests_total", Counter, []string{"operation", "result"},
		"Requests to the API, each try counted, by operation and result: ok, not_found, throttled (429), refused (4xx), failed (5xx), unanswered."}
	keysMinted = Family{Prefix + "auth_keys_minted_total", Counter, nil,
		"Auth keys that the API has minted."}

	podUp = Family{Prefix + "pod_up", Gauge, perPod(),
		"Whether the pod's node is Running."}
	podWritten = Family{Prefix + "pod_disk_written_bytes_total", Counter, perPod("file"),
		"Bytes that this process has written to the host's disk for the pod's node, by file: record, state (keys and preferences), netmap, resolv_conf."}
	podBytes = Family{Prefix + "pod_bytes_total", Counter, perPod("direction", "path"),
		"Bytes between the pod and its peers since its backend was opened, by path: direct, derp, peer_relay (WireGuard's packets with their headers), local (the pod's own, to another pod of the host)."}
	podPackets = Family{Prefix + "pod_packets_total", Counter, perPod("direction", "path"),
		"Packets between the pod and its peers: see the bytes."}
	podDrops = Family{Prefix + "pod_dropped_packets_total", Counter, perPod("direction", "reason"),
		"Packets dropped since the node's backend was opened, by reason: acl, error, and what else tailscale.com names; malformed is for malformed frames of the pod."}
	podCutRefusals = Family{Prefix + "pod_segmentation_refused_total", Counter, perPod(),
		"Frames for the pod that the kernel was to cut into segments and refused. After one the pod gets single packets for a while."}
	podControl = Family{Prefix + "pod_control_connected", Gauge, perPod(),
		"Whether the node is connected to the control plane."}
	podKeyExpiry = Family{Prefix + "pod_key_expiry_timestamp_seconds", Gauge, perPod(),
		"When the node's key expires; no series for one that does not."}
	podHome = Family{Prefix + "pod_home_derp_info", Gauge, perPod("region"),
		"1, with the code of the node's home DERP region."}
	podPeers = Family{Prefix + "pod_peers", Gauge, perPod(),
		"Peers that the node may talk to."}
	podSessions = Family{Prefix + "pod_wireguard_sessions", Gauge, perPod(),
		"Peers with a WireGuard session, or one that has just run out."}
	podHandshake = Family{Prefix + "pod_handshake_timestamp_seconds", Gauge, perPod("of"),
		"When the last handshake was, of the peers with a session: of the oldest and of the newest; no series without any."}
)
