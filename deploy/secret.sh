#!/bin/sh
# secret.sh OVERLAY KUBECTL...: puts the credentials that are in the environment into the Secret
# tailscale-nri-credentials, and ends with 1 where the agents of that overlay would only wait for some. They go through
# pipes alone: a command line is for everybody on the machine to see. Nor is a copy of them kept in an annotation, as
# kubectl apply does.
set -eu

secret=tailscale-nri-credentials
overlay=$1
shift

end() {
	echo "deploy: $1" >&2
	exit 1
}

credentials() {
	for key in TS_OAUTH_CLIENT_ID TS_OAUTH_CLIENT_SECRET TS_AUTHKEY; do
		eval "value=\${$key:-}"
		# shellcheck disable=SC2154 # eval sets it
		[ -z "$value" ] || printf '%s=%s\n' "$key" "$value"
	done
}

proxies() {
	for key in HTTPS_PROXY HTTP_PROXY NO_PROXY; do
		value=$("$@" -n tailscale-nri get secret "$secret" --ignore-not-found -o "jsonpath={.data.$key}")
		[ -z "$value" ] || printf '%s=%s\n' "$key" "$(printf %s "$value" | base64 -d)"
	done
}

# An unknown context or a server that does not answer ends this here.
there=$("$@" -n tailscale-nri get secret "$secret" --ignore-not-found -o name)
rendered=$("$@" kustomize "$overlay" | sed '/CLUSTER_NAME: REPLACE-ME$/d') # that one make deploy writes
case $rendered in
*REPLACE-ME*) end "$overlay has REPLACE-ME in it; write there what its first lines say" ;;
*'TS_OAUTH_CLIENT_ID: ""'*) end "TS_OAUTH_CLIENT_ID in $overlay is empty; write there what its first lines say" ;;
esac

if [ -n "${TS_OAUTH_CLIENT_ID:-}" ] && [ -n "${TS_OAUTH_CLIENT_SECRET:-}" ]; then
	[ -z "${TS_AUTHKEY:-}" ] || end "TS_AUTHKEY as well as TS_OAUTH_CLIENT_SECRET is in the environment; unset one"
elif [ -z "${TS_AUTHKEY:-}" ]; then
	case $rendered in
	*'name: TS_ID_TOKEN_FILE'* | *'kind: Secret'*) exit 0 ;; # it needs none, or brings its own
	esac
	[ -n "$there" ] || end "no credentials; put TS_OAUTH_CLIENT_ID and TS_OAUTH_CLIENT_SECRET, or TS_AUTHKEY, into the environment"
	echo "deploy: no credentials in the environment; the Secret $secret stays as it is"
	exit 0
fi

# With the labels that it is to have: without them it could not hold agents between this and the overlay's apply.
"$@" apply -f deploy/base/namespace.yaml
# The whole Secret is replaced: nothing of the other way into the tailnet may be left. Proxies stay, which with a password have
# their place there too.
kept=$(proxies "$@")
printf '%s\n%s\n' "$(credentials)" "$kept" | grep . | "$@" -n tailscale-nri create secret generic "$secret" --from-env-file=/dev/stdin --dry-run=client -o yaml |
	"$@" "$([ -n "$there" ] && echo replace || echo create)" -f -
