#!/bin/sh
# leave.sh KUBECTL...: deletes the samples and waits until no agent has a node of the tailnet left. A cluster that is
# deleted under its pods leaves their devices behind: nobody is there to delete them.
set -eu

"$@" delete --ignore-not-found --wait -f k3d/samples

# The kubelet takes up to a minute to remove a sandbox, and with it the device goes.
tries=40
while [ "$tries" -gt 0 ]; do
	left=
	for agent in $("$@" -n tailscale-nri get pods -l app.kubernetes.io/name=tailscale-nri -o name); do
		# An agent that cannot be asked ends this: silence does not mean that nothing is left.
		nodes=$("$@" -n tailscale-nri exec "$agent" -- /tailscale-nri status)
		left="$left$(echo "$nodes" | tail -n +2)"
	done
	[ -n "$left" ] || exit 0
	tries=$((tries - 1))
	sleep 3
done
echo "k3d-down: these are still in the tailnet; delete their pods first, or their devices by hand:" >&2
echo "$left" >&2
exit 1
