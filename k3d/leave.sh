#!/bin/sh
# leave.sh KUBECTL...: deletes the samples and waits until no agent has a node of the tailnet left. A cluster that is
# deleted under its pods leaves their devices behind: nobody is there to delete them.
set -eu

"$@" delete --ignore-not-found --wait -f k3d/samples

# The kubelet takes up to a minute to remove a sandbox, and with it the device goes.
tries=40
while [ "$tries" -gt 0 ]; do
	left=
	# Who cannot be asked ends this: silence does not mean that nothing is left.
	agents=$("$@" -n tailscale-nri get pods -l app.kubernetes.io/name=tailscale-nri -o name)
	for agent in $agents; do
		# It ends with 1 where something is not Running, and has its table all the same.
		nodes=$("$@" -n tailscale-nri exec "$agent" -- /tailscale-nri status) || [ "${nodes%% *}" = POD ]
		# The table ends at an empty line; below are remarks.
		left=$(printf '%s\n%s' "$left" "$(echo "$nodes" | sed -e 1d -e '/^$/,$d' -e '/ NoNode /d')")
	done
	[ -n "$left" ] || exit 0
	tries=$((tries - 1))
	sleep 3
done
echo "k3d-down: these are still in the tailnet; delete their pods first, or their devices by hand:" >&2
echo "$left" | grep . >&2
exit 1
