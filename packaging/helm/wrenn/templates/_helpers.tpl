{{- define "wrenn.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "wrenn.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "wrenn.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "wrenn.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The labels that select the pods of a component: (list $ "control-plane") */}}
{{- define "wrenn.selector" -}}
{{- $ := index . 0 -}}
app.kubernetes.io/name: {{ include "wrenn.name" $ }}
app.kubernetes.io/instance: {{ $.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "wrenn.labels" -}}
{{- $ := index . 0 -}}
{{ include "wrenn.selector" . }}
app.kubernetes.io/version: {{ $.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $.Chart.Name $.Chart.Version }}
{{- end -}}

{{/* An image: (list $ .Values.controlPlane.image) */}}
{{- define "wrenn.image" -}}
{{- $ := index . 0 -}}{{- $image := index . 1 -}}
{{- with $.Values.image.registry }}{{ . }}/{{ end -}}
{{ $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ default $.Chart.AppVersion $image.tag }}{{ end -}}
{{- end -}}

{{- define "wrenn.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "wrenn.databaseSecret" -}}
{{- if .Values.cloudNativePG.enabled -}}{{ include "wrenn.fullname" . }}-postgresql-app{{- else -}}{{ required "database.existingSecret: name the secret with the URL of PostgreSQL, or set cloudNativePG.enabled" .Values.database.existingSecret }}{{- end -}}
{{- end -}}

{{- define "wrenn.databaseKey" -}}
{{- if .Values.cloudNativePG.enabled -}}uri{{- else -}}{{ .Values.database.key }}{{- end -}}
{{- end -}}

{{/* Where host agents find the API. */}}
{{- define "wrenn.url" -}}
{{- $own := printf "https://%s-control-plane.%s.svc" (include "wrenn.fullname" .) .Release.Namespace -}}
{{- if .Values.hostAgent.controlPlane.url -}}
{{- .Values.hostAgent.controlPlane.url -}}
{{- else if .Values.tls.existingSecret -}}
{{- $own -}}
{{- else -}}
{{- fail "hostAgent.controlPlane.url: without tls.existingSecret set the address at which hosts reach the API by TLS, or set hostAgent.enabled to false" -}}
{{- end -}}
{{- end -}}

{{/*
A map as TOML: (dict "path" "" "value" $map). Texts, numbers and lists are written as in
JSON, which TOML reads the same; tables follow the keys of their parent.
*/}}
{{- define "wrenn.toml" -}}
{{- $path := .path -}}
{{- range $key, $value := .value }}
{{- if and (not (kindIs "map" $value)) (not (kindIs "invalid" $value)) }}
{{ $key }} = {{ mustToRawJson $value }}
{{- end }}
{{- end }}
{{- range $key, $value := .value }}
{{- if kindIs "map" $value }}
{{- $name := ternary $key (printf "%s.%s" $path $key) (eq $path "") }}
{{ printf "\n[%s]" $name }}
{{- include "wrenn.toml" (dict "path" $name "value" $value) }}
{{- end }}
{{- end }}
{{- end -}}
