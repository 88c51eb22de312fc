{{- define "tailscale-nri.selectorLabels" -}}
app.kubernetes.io/name: tailscale-nri
{{- end }}

{{- define "tailscale-nri.labels" -}}
{{ include "tailscale-nri.selectorLabels" . }}
app.kubernetes.io/component: node-agent
app.kubernetes.io/part-of: tailscale-nri
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "tailscale-nri.image" -}}
{{- with .Values.image -}}
{{ .repository }}:{{ .tag }}{{ with .digest }}@{{ . }}{{ end }}
{{- end -}}
{{- end }}

{{- define "tailscale-nri.audience" -}}
{{- with .Values.workloadIdentity -}}
{{ .audience | default (printf "api.tailscale.com/%s" .clientID) }}
{{- end -}}
{{- end }}

{{/* What the schema cannot say in words that help: exactly one way into the tailnet. */}}
{{- define "tailscale-nri.checkCredentials" -}}
{{- $c := .Values.credentials -}}
{{- $oauth := or $c.oauthClientID $c.oauthClientSecret -}}
{{- if and $c.create .Values.workloadIdentity.clientID -}}
{{- fail "credentials.create and workloadIdentity.clientID are two ways into the tailnet: keep one" -}}
{{- else if and (not $c.create) (or $oauth $c.authKey) -}}
{{- fail "credentials has values but credentials.create is false: set it to true, or put them into the Secret that credentials.secretName names" -}}
{{- else if and $c.create $oauth $c.authKey -}}
{{- fail "credentials.oauthClientID and credentials.authKey are two ways into the tailnet: keep one" -}}
{{- else if and $c.create $oauth (not (and $c.oauthClientID $c.oauthClientSecret)) -}}
{{- fail "credentials.oauthClientID and credentials.oauthClientSecret belong together: set both" -}}
{{- else if and $c.create (not $oauth) (not $c.authKey) -}}
{{- fail "credentials.create is true but there is nothing to put into the Secret: set oauthClientID and oauthClientSecret, or authKey" -}}
{{- end -}}
{{- end }}

{{/* Nor can the schema say why a variable is not for extraEnv. */}}
{{- define "tailscale-nri.checkEnv" -}}
{{- range .Values.extraEnv -}}
{{- if has .name (list "TS_OAUTH_CLIENT_SECRET" "TS_AUTHKEY") -}}
{{- fail (printf "extraEnv has %s: put it into the Secret that credentials.secretName names" .name) -}}
{{- else if has .name (list "TS_CONFIG_DIR" "POD_UID" "NODE_NAME" "TS_STATE_SECRETS" "TS_KUBERNETES_STATUS" "TS_ID_TOKEN_FILE" "SSL_CERT_FILE" "TS_STATE_DIR" "TS_STATUS_SOCKET") -}}
{{- fail (printf "extraEnv has %s: the chart sets it, or its mounts decide it; use workloadIdentity, workloadState, kubernetesStatus or caConfigMap where it is about those" .name) -}}
{{- else if and (hasKey $.Values.config .name) (not .valueFrom) -}}
{{- fail (printf "extraEnv has %s: set config.%s (or, a proxy with a password, that key of the Secret), which takes effect without a roll" .name .name) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* An API server wants exactly one of the two to be other than 0, and takes 0 and 1 for those that are not given. */}}
{{- define "tailscale-nri.updateStrategy" -}}
{{- with .Values.updateStrategy -}}
type: {{ .type }}
{{- if eq .type "RollingUpdate" }}
{{- $roll := .rollingUpdate | default dict -}}
{{- $surge := ternary "0" (toString $roll.maxSurge) (kindIs "invalid" $roll.maxSurge) -}}
{{- $out := ternary "1" (toString $roll.maxUnavailable) (kindIs "invalid" $roll.maxUnavailable) -}}
{{- if eq (has $surge (list "0" "0%")) (has $out (list "0" "0%")) -}}
{{- fail (printf "updateStrategy.rollingUpdate has maxSurge %s and maxUnavailable %s: one of them has to be 0 and the other not; maxSurge 1 and maxUnavailable 0 make the smallest gap" $surge $out) -}}
{{- end }}
{{- with $roll }}
rollingUpdate:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
