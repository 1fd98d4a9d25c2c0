{{/* What a schema cannot say: rules between values. Each failure names the key. */}}
{{- define "scs.validate" -}}
{{- $values := .Values -}}
{{- $directories := int (include "scs.directories" .) -}}
{{- if lt (int $values.cache.shards) $directories -}}
{{- fail (printf "cache.shards: %d cannot use %d data directories" (int $values.cache.shards) $directories) -}}
{{- end -}}
{{- $ops := int $values.cache.opsPort -}}
{{- $first := int $values.cache.port -}}
{{- $last := sub (add $first $values.cache.shards) 1 | int -}}
{{- if gt $last 65535 -}}
{{- fail (printf "cache.port: the last of %d shards would need port %d" (int $values.cache.shards) $last) -}}
{{- end -}}
{{- if and (ge $ops $first) (le $ops $last) -}}
{{- fail (printf "cache.opsPort: %d is a shard's (%d to %d)" $ops $first $last) -}}
{{- end -}}
{{- if eq (int $values.envoy.port) (int $values.envoy.opsPort) -}}
{{- fail (printf "envoy.opsPort: %d is envoy.port, too" (int $values.envoy.opsPort)) -}}
{{- end -}}
{{- if eq (int $values.controlPlane.xdsPort) (int $values.controlPlane.opsPort) -}}
{{- fail (printf "controlPlane.opsPort: %d is controlPlane.xdsPort, too" (int $values.controlPlane.opsPort)) -}}
{{- end -}}
{{- $none := "^0+%?$" -}}
{{- if regexMatch $none (toString $values.cache.maxUnavailable) -}}
{{- fail "cache.maxUnavailable: 0 would mean that nothing can be updated" -}}
{{- end -}}
{{- if and (regexMatch $none (toString $values.envoy.updateStrategy.maxUnavailable)) (regexMatch $none (toString $values.envoy.updateStrategy.maxSurge)) -}}
{{- fail "envoy.updateStrategy: with maxUnavailable and maxSurge both 0 nothing can be updated" -}}
{{- end -}}
{{- $distribution := include "scs.trafficDistribution" . -}}
{{- if and (eq $values.service.internalTrafficPolicy "Local") (ne $distribution "none") -}}
{{- fail (printf "service.trafficDistribution: %q has no effect with internalTrafficPolicy Local; use auto or none" $distribution) -}}
{{- end -}}
{{- range $key := list "service.kubernetes.io/topology-mode" "service.kubernetes.io/topology-aware-hints" -}}
{{- if hasKey $values.service.annotations $key -}}
{{- fail (printf "service.annotations: %s would win over trafficDistribution; use service.trafficDistribution: annotation" $key) -}}
{{- end -}}
{{- end -}}
{{- $seen := dict -}}
{{- range $i, $bucket := $values.buckets -}}
{{- $where := printf "buckets[%d] (%s)" $i $bucket.Name -}}
{{- if hasKey $seen $bucket.Name -}}
{{- fail (printf "%s: the name is there twice" $where) -}}
{{- end -}}
{{- $_ := set $seen $bucket.Name true -}}
{{- $reads := or (hasKey $bucket "AllowNamespaces") (hasKey $bucket "ReadNamespaces") -}}
{{- if and $bucket.Public $reads -}}
{{- fail (printf "%s: a Public bucket is read by all; limit its writers by WriteNamespaces" $where) -}}
{{- end -}}
{{- if and (not $bucket.Public) (not $reads) -}}
{{- fail (printf "%s: a bucket that is not Public needs AllowNamespaces (or ReadNamespaces)" $where) -}}
{{- end -}}
{{- end -}}
{{- if and $values.buckets $values.existingBucketsConfigMap -}}
{{- fail "buckets: existingBucketsConfigMap is set, too; use one of them" -}}
{{- end -}}
{{- if $values.tests.enabled -}}
{{- if not $values.tests.bucket -}}
{{- fail "tests.bucket: name the bucket that the test may write to" -}}
{{- end -}}
{{- if and (not $values.existingBucketsConfigMap) (not (hasKey $seen $values.tests.bucket)) -}}
{{- fail (printf "tests.bucket: %q is not among buckets" $values.tests.bucket) -}}
{{- end -}}
{{- end -}}
{{- end -}}
