#!/bin/sh
# secret.sh KUBECTL...: puts the credentials that are in the environment into the Secret tailscale-nri-credentials. They
# go through pipes alone: a command line is for everybody on the machine to see. Nor does kubectl apply keep a copy of
# them in an annotation, as it does without --server-side.
set -eu

secret=tailscale-nri-credentials

credentials() {
	for key in TS_OAUTH_CLIENT_ID TS_OAUTH_CLIENT_SECRET TS_AUTHKEY; do
		eval "value=\${$key:-}"
		# shellcheck disable=SC2154 # eval sets it
		[ -z "$value" ] || printf '%s=%s\n' "$key" "$value"
	done
}

if [ -n "${TS_AUTHKEY:-}" ] || { [ -n "${TS_OAUTH_CLIENT_ID:-}" ] && [ -n "${TS_OAUTH_CLIENT_SECRET:-}" ]; }; then
	credentials | "$@" -n tailscale-nri create secret generic "$secret" --from-env-file=/dev/stdin --dry-run=client -o yaml |
		"$@" apply --server-side --force-conflicts -f -
elif "$@" -n tailscale-nri get secret "$secret" >/dev/null 2>&1; then
	echo "deploy: no credentials in the environment; the Secret $secret stays as it is"
else
	echo "deploy: no credentials: TS_OAUTH_CLIENT_ID and TS_OAUTH_CLIENT_SECRET, or TS_AUTHKEY, are not in the environment"
	echo "deploy: without them the agents wait, unless OVERLAY is one that needs none; set them and run it again"
fi
