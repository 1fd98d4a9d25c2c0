{{/* Names and labels. A name leaves room for suffixes; one that is cut ends in its hash, so that two stay two. */}}
{{- define "scs.fullname" -}}
{{- $name := default .Release.Name .Values.fullnameOverride -}}
{{- if gt (len $name) 40 -}}
{{- printf "%s-%s" (trunc 31 $name | trimSuffix "-") (sha256sum $name | trunc 8) -}}
{{- else -}}
{{- $name -}}
{{- end -}}
{{- end -}}

{{/* Names of what is not in a namespace hold the namespace. Neither part can hold a colon. */}}
{{- define "scs.clusterName" -}}
{{- printf "%s:%s" (include "scs.fullname" .) .Release.Namespace -}}
{{- end -}}

{{/* Selectors cannot be changed later: these three labels and no more. Call with (list $ "component"). */}}
{{- define "scs.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: simple-cache-service
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "scs.labels" -}}
{{- $root := index . 0 -}}
{{ include "scs.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: simple-cache-service
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The metadata of a namespaced resource. Call with (list $ "component" "name"). */}}
{{- define "scs.metadata" -}}
{{- $root := index . 0 -}}
name: {{ index . 2 }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "scs.labels" (list $root (index . 1)) | nindent 2 }}
{{- end -}}

{{- define "scs.image" -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest | quote -}}
{{- else -}}
{{- printf "%s:%s" $image.repository (default (index . 0).Chart.AppVersion $image.tag) | quote -}}
{{- end -}}
{{- end -}}

{{- define "scs.cacheName" -}}{{ include "scs.fullname" . }}-cache{{- end -}}
{{- define "scs.envoyName" -}}{{ include "scs.fullname" . }}-envoy{{- end -}}
{{- define "scs.controlPlaneName" -}}{{ include "scs.fullname" . }}-control-plane{{- end -}}
{{- define "scs.xdsName" -}}{{ include "scs.fullname" . }}-xds{{- end -}}
{{- define "scs.bucketsName" -}}{{ default (printf "%s-buckets" (include "scs.fullname" .)) .Values.existingBucketsConfigMap }}{{- end -}}
{{- define "scs.peerKeyName" -}}{{ default (printf "%s-peer-key" (include "scs.fullname" .)) .Values.peerKey.existingSecret }}{{- end -}}

{{/* A Service's host name: by the search domains, or in full and then with the closing dot. Call with (list $ "name"). */}}
{{- define "scs.host" -}}
{{- $root := index . 0 -}}
{{- printf "%s.%s.svc" (index . 1) $root.Release.Namespace -}}
{{- with $root.Values.clusterDomain }}.{{ . }}.{{ end -}}
{{- end -}}

{{/* HOST:PORT as the flags take it. Call with (list $ port). */}}
{{- define "scs.address" -}}
{{- $host := (index . 0).Values.bindAddress -}}
{{- printf "%s:%d" (contains ":" $host | ternary (printf "[%s]" $host) $host) (int (index . 1)) -}}
{{- end -}}

{{- define "scs.shardPorts" -}}
{{- $ports := list -}}
{{- range $i := until (int .Values.cache.shards) -}}
{{- $ports = append $ports (add $.Values.cache.port $i | toString) -}}
{{- end -}}
{{- join "," $ports -}}
{{- end -}}

{{- define "scs.directories" -}}
{{- if eq .Values.cache.storage.type "hostPath" -}}
{{- len .Values.cache.storage.hostPath.paths -}}
{{- else -}}
{{- .Values.cache.storage.volumeClaim.count -}}
{{- end -}}
{{- end -}}

{{/* Everybody runs as one ordinary user: Envoy's admin socket is for its owner alone. */}}
{{- define "scs.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "scs.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Pod fields that are the same for every part. Call with (list $ values). */}}
{{- define "scs.podCommon" -}}
{{- $root := index . 0 -}}
{{- $part := index . 1 -}}
# Variables of Services (SCS_…) would be taken for flags.
enableServiceLinks: false
securityContext:
  {{- include "scs.podSecurity" $root | nindent 2 }}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $part.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $part.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Whether zones come from Node objects: "true" or "". */}}
{{- define "scs.zoneFromNodes" -}}
{{- $wanted := .Values.controlPlane.zoneFromNodes | toString -}}
{{- if or (eq $wanted "true") (and (eq $wanted "auto") (semverCompare "<1.35.0-0" .Capabilities.KubeVersion.Version)) -}}
true
{{- end -}}
{{- end -}}

{{/* How connections find an Envoy: a value of spec.trafficDistribution, "annotation" or "none". */}}
{{- define "scs.trafficDistribution" -}}
{{- $wanted := .Values.service.trafficDistribution -}}
{{- $version := .Capabilities.KubeVersion.Version -}}
{{- if ne $wanted "auto" -}}
{{- $wanted -}}
{{- else if eq .Values.service.internalTrafficPolicy "Local" -}}
none
{{- else if semverCompare ">=1.34.0-0" $version -}}
PreferSameZone
{{- else if semverCompare ">=1.31.0-0" $version -}}
PreferClose
{{- else -}}
annotation
{{- end -}}
{{- end -}}
