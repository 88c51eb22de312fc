#!/bin/sh
# name.sh KUBECTL...: prints the CLUSTER_NAME for an overlay that leaves it open: the one in the environment, else the
# one that the cluster has been given before, else K3D_CLUSTER with the user's and the machine's name. Two clusters with
# the same name on one tailnet take each other's devices, so no two developers may have the same by default.
set -eu

most=32 # characters that the program takes

name=${CLUSTER_NAME:-}
[ -n "$name" ] || name=$("$@" -n tailscale-nri get configmap tailscale-nri --ignore-not-found -o 'jsonpath={.data.CLUSTER_NAME}')
case $name in
'' | k3d | *REPLACE-ME*) # k3d is what every cluster was called once
	full=$(printf '%s-%s-%s' "$K3D_CLUSTER" "$(id -un)" "$(uname -n | cut -d. -f1)" | tr '[:upper:]' '[:lower:]' | tr -cs 'a-z0-9' '-')
	name=$full
	if [ "${#name}" -gt "$most" ]; then
		sum=$(printf '%s' "$full" | cksum | cut -d' ' -f1)
		name=$(printf '%s' "$full" | cut -c "1-$((most - 1 - ${#sum}))")-$sum
	fi
	name=$(printf '%s' "$name" | sed -e 's/^-*//' -e 's/-*$//' -e 's/--*/-/g')
	;;
esac
echo "$name"
