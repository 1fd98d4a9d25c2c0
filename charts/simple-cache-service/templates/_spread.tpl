{{/* One pod a node, and over zones where possible. Call with (list $ "component" "label of the revision"). */}}
{{- define "scs.spread" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $revision := index . 2 -}}
- topologyKey: kubernetes.io/hostname
  maxSkew: 1
  whenUnsatisfiable: DoNotSchedule
  # Nodes that the pods may not use do not count, or they would be waited for.
  nodeTaintsPolicy: Honor
  matchLabelKeys: [{{ $revision }}]
  labelSelector:
    matchLabels:
      {{- include "scs.selector" (list $root $component) | nindent 6 }}
- topologyKey: topology.kubernetes.io/zone
  maxSkew: 1
  whenUnsatisfiable: ScheduleAnyway
  matchLabelKeys: [{{ $revision }}]
  labelSelector:
    matchLabels:
      {{- include "scs.selector" (list $root $component) | nindent 6 }}
{{- end -}}
