#!/bin/sh
# rollout.sh KUBECTL...: waits until each node that is up is served by an agent of the last version, for WAIT seconds at
# most, and ends with 1 if one is not: it names those nodes, and says why. Nodes that are down are named and not waited
# for: they get their agent when they come back. ("kubectl rollout status" waits for them too.) NAMESPACE is the
# DaemonSet's, tailscale-nri unless it is given.
set -eu

namespace=${NAMESPACE:-tailscale-nri}
label=app.kubernetes.io/name=tailscale-nri
wait=${WAIT:-180}
pause=3 # seconds

# look writes a line into nodes for each node that is to be served: its name, up or down, and "served" or the pod that is
# to serve it. It fails where the controller has not caught up with what was applied.
look() {
	counts=$("$@" -n "$namespace" get daemonset tailscale-nri -o \
		'jsonpath={.metadata.generation} {.status.observedGeneration} {.status.desiredNumberScheduled}') || return 1
	revision=$("$@" -n "$namespace" get controllerrevisions -l $label --sort-by=.revision -o \
		'jsonpath={.items[-1:].metadata.labels.controller-revision-hash}') || return 1
	hosts=$("$@" get nodes -o \
		'jsonpath={range .items[*]}node {.metadata.name} {.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}') || return 1
	# The controller writes a pod's node into its affinity: one that waits for the scheduler has it too.
	term='.spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0]'
	pod='pod {.metadata.name} {.metadata.labels.controller-revision-hash}'
	pods=$("$@" -n "$namespace" get pods -l $label -o "jsonpath={range .items[*]}$pod {$term.matchFields[0].values[0]} \
ready={.status.conditions[?(@.type==\"Ready\")].status} {.metadata.deletionTimestamp}{\"\\n\"}{end}") || return 1
	nodes=$(printf '%s\n%s\n' "$hosts" "$pods" | awk -v revision="$revision" '
		$1 == "node" { state[$2] = $3 == "True" ? "up" : "down" }
		$1 == "pod" && !($4 in pod) { pod[$4] = $2 }
		$1 == "pod" && $3 == revision && $6 == "" { pod[$4] = $5 == "ready=True" ? "served" : $2 }
		END { for (n in pod) if (n in state) print n, state[n], pod[n] }' | sort)
	echo "$counts $(echo "$nodes" | grep -c .)" | awk '{ exit !(NF == 4 && $2 >= $1 && $3 > 0 && $4 >= $3) }'
}

# missing lists the pods that do not serve a node that is up.
missing() {
	echo "$nodes" | awk '$2 == "up" && $3 != "served" { print $1, $3 }'
}

# explain says why a pod does not serve its node: what the scheduler, the kubelet, its last warning and its log say.
explain() {
	pod=$1
	shift
	{
		"$@" -n "$namespace" get pod "$pod" -o 'jsonpath={.status.conditions[?(@.type=="PodScheduled")].message}{"\n"}' || true
		"$@" -n "$namespace" get pod "$pod" -o 'jsonpath={.status.containerStatuses[0].state.waiting.message}{"\n"}' || true
		"$@" -n "$namespace" get events --field-selector "involvedObject.name=$pod,type=Warning" --sort-by=.lastTimestamp \
			-o 'jsonpath={.items[-1:].message}{"\n"}' || true
		"$@" -n "$namespace" logs "$pod" --tail 3 || true
	} 2>/dev/null | grep . | sed 's/^/    /'
}

nodes=
deadline=$(($(date +%s) + wait))
until look "$@" && [ -z "$(missing)" ]; do
	if [ "$(date +%s)" -ge "$deadline" ]; then
		echo "deploy: after $wait s not every node is served (WAIT=… waits longer); those without an agent of this version that is ready:" >&2
		[ -n "$(missing)" ] || echo "  none that is up has a pod: no node matches the DaemonSet, or its controller is behind" >&2
		missing | while read -r node pod; do
			echo "  $node ($pod):" >&2
			explain "$pod" "$@" >&2 || true
		done
		exit 1
	fi
	sleep $pause
done
down=$(echo "$nodes" | awk '$2 == "down" { printf " %s", $1 }')
[ -z "$down" ] || echo "deploy: not waited for, since they are down:$down; they get their agent when they come back"
