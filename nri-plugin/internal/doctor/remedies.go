// SPDX-License-Identifier: BSD-3-Clause

package doctor

// The remedies of the doctor's findings. Each is one line, the same each time, and
// stands in deploy/TROUBLESHOOTING.md, where it is explained.
const (
	RemedyConfiguration = "fix the setting that is named; by hand, set what the plugin's pod has in its environment, TS_CONFIG_DIR first"
	remedyNoPlugin      = "run the doctor in the plugin's pod, or start the plugin; kubectl describe of its pod says why it does not run"
	remedyNotReady      = "look for this text in deploy/TROUBLESHOOTING.md: it is the plugin's own, as its readiness probe has it"
	remedyPods          = "look for the reason's text in deploy/TROUBLESHOOTING.md"
	remedyTwoPlugins    = "if no roll is under way, remove the other installation: kubectl get daemonsets -A lists them"
	remedyTimeouts      = "set plugin_request_timeout to 2s or more in the NRI section of the runtime's configuration and restart the runtime"
	remedyNoNRI         = "start containerd, switch its NRI on, and mount the directory of its socket, or name the socket in NRI_SOCKET"
	remedyOtherRuntime  = "disable NRI in the runtime that listens there, restart the kubelet's, or give each a socket of its own (NRI_SOCKET)"

	remedyOldKernel     = "use a kernel of Linux 4.20 or later"
	RemedyNamespaces    = "give the process CAP_SYS_ADMIN, and let user.max_net_namespaces be more than 0"
	remedyModules       = "run modprobe -a veth sch_ingress cls_bpf on the host; a kernel that was built without them cannot be used"
	remedyPacket        = "run modprobe af_packet on the host, and give the process CAP_NET_RAW"
	remedyPolicyRouting = "use a kernel with CONFIG_IP_MULTIPLE_TABLES and CONFIG_IPV6_MULTIPLE_TABLES"
	remedyNAT           = "run modprobe -a nf_tables nft_chain_nat on the host if pods are to use a feature that translates addresses"
	remedyOffload       = "nothing has to be done: traffic is slower; Linux 5.0 or later has these offloads"
	remedyIPv6          = "set net.ipv6.conf.all.disable_ipv6=0, or leave IPv6 off: pods then have their IPv4 address alone"
	RemedyCapabilities  = "add them to the container's securityContext.capabilities, or run as root"

	remedyCredentials = "make scopes (auth_keys and devices:core, write), the credential's tags and tagOwners in the policy file agree; with HTTP 401 its ID or secret is wrong"
	remedyKeyLeft     = "nothing has to be done: the key expires within a minute; the scope auth_keys needs write access"
	remedyAuthKey     = "put a reusable auth key that has not expired, with the tags of the pods, into TS_AUTHKEY"
	RemedyUnreachable = "let the host reach it over TCP 443, set HTTPS_PROXY if there is a proxy, and check the host's resolver"
	remedyNotControl  = "check TS_LOGIN_SERVER: something answers there, and it is not a control server of Tailscale or Headscale"
	remedyUpgrade     = "have what stands on the way (a reverse proxy, or one that opens TLS) pass /ts2021 on with its header Upgrade"
	remedyClock       = "set the host's clock, by timedatectl set-ntp true or chrony"
	remedyProxy       = "check host, port, user and password in HTTPS_PROXY and HTTP_PROXY, and the hosts in NO_PROXY"
	remedyDERP        = "let the hosts reach the DERP servers over TCP 443: without them no peer finds a pod"
	remedyUDP         = "let the hosts send UDP to any address and port, 3478 for STUN: without it all traffic goes over DERP"
	remedyMTU         = "raise the MTU of that interface to 1340 for IPv4 and 1360 for IPv6, or expect packets in fragments"

	remedyRanges       = "name these ranges in TS_CLUSTER_RANGES: they then stay on eth0"
	remedyServices     = "name the range of all Services in TS_CLUSTER_RANGES, with kOps 100.64.0.0/13: otherwise a peer may have the address of the cluster's DNS"
	remedyRangesWhole  = "name the cluster's own ranges in TS_CLUSTER_RANGES, not all of Tailscale's: no pod can begin to talk to a peer"
	remedyExitNode     = "use no exit node on the cluster's hosts: tailscale set --exit-node="
	remedyAccepted     = "accept routes only where the host needs them: tailscale set --accept-routes=false"
	remedyManager      = "have the network manager leave the links vetht* alone: unmanaged in systemd-networkd or NetworkManager"
	remedyStateMissing = "start the plugin, which makes the directory, or name the right one in TS_STATE_DIR"
	remedyStateRead    = "mount the directory of TS_STATE_DIR, readable and writable for root"
	remedyStateWrite   = "make the state directory writable; if it was, the kernel's log says why it no longer is"
	remedyStateMode    = "run chmod 0700 on that directory: the keys of pods' nodes are in it"
	remedySpace        = "free space, and inodes, on the file system of the state directory"
	remedySetAside     = "delete what was set aside once nobody needs it; the log says which device it belongs to"
	remedyBadRecord    = "start the plugin again: it sets aside what it cannot read, and its log says what became of it"
	remedyLeftLink     = "delete the link with ip link del if its pod is gone; the plugin does so itself when it starts"
	remedyLeftRecord   = "start the plugin, which ends what has ended; while it runs, restart it"

	remedyDevices = "delete devices that are no longer used, raise what the plan allows, or have fewer pods with a node"
	remedyFiles   = "raise the limit of open files (LimitNOFILE) of the container runtime: a pod's node has 11 of them"
	remedyMemory  = "free memory on the host: an OOM kill takes the nodes of all pods away until the process is back"
)
