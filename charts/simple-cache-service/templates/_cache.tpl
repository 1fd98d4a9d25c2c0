{{/* The cache node's pod, for the DaemonSet as well as the StatefulSet. */}}
{{- define "scs.cachePod" -}}
{{- $cache := .Values.cache -}}
{{- $storage := $cache.storage -}}
{{- $onHost := eq $storage.type "hostPath" -}}
{{- $authenticated := eq .Values.auth.mode "kubernetes" -}}
metadata:
  labels:
    {{- include "scs.selector" (list . "cache") | nindent 4 }}
    {{- with $cache.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    # The control plane learns from these what to put into the ring.
    simple-cache-service/ports: {{ include "scs.shardPorts" . | quote }}
    simple-cache-service/weight: {{ $cache.weight | toString | quote }}
    {{- if not $onHost }}
    # The data follows the pod's name, not the node's.
    simple-cache-service/name-from: pod
    {{- end }}
    {{- with $cache.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "scs.cacheName" . }}
  # For TokenReviews; without them there is nothing to ask.
  automountServiceAccountToken: {{ $authenticated }}
  {{- include "scs.podCommon" (list . $cache) | nindent 2 }}
  # SIGTERM begins the drain: /readyz says no, the control plane takes the shards out of the ring, Envoys leave.
  terminationGracePeriodSeconds: {{ add $cache.drainDelaySeconds $cache.drainGraceSeconds 15 }}
  {{- if and $onHost $storage.hostPath.prepare }}
  initContainers:
    # The kubelet makes hostPath directories as root's, and fsGroup does not apply to them.
    - name: prepare
      image: {{ include "scs.image" (list . .Values.image) }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      command: [chown, "65532:65532"]
      args:
        {{- range $i, $_ := $storage.hostPath.paths }}
        - /var/lib/scs/{{ $i }}
        {{- end }}
      securityContext:
        runAsNonRoot: false
        runAsUser: 0
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
          add: [CHOWN]
      resources:
        requests: {cpu: 10m, memory: 16Mi}
        limits: {memory: 64Mi}
      volumeMounts:
        {{- include "scs.dataMounts" . | trim | nindent 8 }}
  {{- end }}
  containers:
    - name: cache
      image: {{ include "scs.image" (list . .Values.image) }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      command: [scs]
      args:
        - serve
        - --auth
        - {{ .Values.auth.mode }}
        {{- if $authenticated }}
        - --audience
        - {{ .Values.auth.audience | quote }}
        - --peer-key
        - /etc/scs-peer/key
        {{- end }}
        - --node-name
        - $(NODE_NAME)
        - --config
        - /etc/scs/buckets.yaml
        - --data
        {{- range $i := until (int (include "scs.directories" .)) }}
        - /var/lib/scs/{{ $i }}
        {{- end }}
        - --shards
        - {{ $cache.shards | toString | quote }}
        - --listen
        - {{ include "scs.address" (list . $cache.port) | quote }}
        - --ops
        - {{ include "scs.address" (list . $cache.opsPort) | quote }}
        - --capacity
        - {{ $cache.capacity | toString | quote }}
        - --max-object-size
        - {{ $cache.maxObjectSize | toString | quote }}
        - --drain-delay
        - {{ $cache.drainDelaySeconds | toString | quote }}
        - --drain-grace
        - {{ $cache.drainGraceSeconds | toString | quote }}
        {{- range $cache.extraArgs }}
        - {{ . | quote }}
        {{- end }}
      env:
        # This name decides which objects are here: it must stay with the data.
        - name: NODE_NAME
          valueFrom:
            fieldRef:
              fieldPath: {{ $onHost | ternary "spec.nodeName" "metadata.name" }}
        # Where the shards are: for "scs locate" in this pod, and to find the other nodes.
        - name: SCS_CONTROL_PLANE
          value: http://{{ include "scs.host" (list . (include "scs.controlPlaneName" .)) }}:{{ .Values.controlPlane.opsPort }}
        {{- with $cache.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - name: ops
          containerPort: {{ $cache.opsPort }}
        {{- range $i := until (int $cache.shards) }}
        - name: shard-{{ $i }}
          containerPort: {{ add $cache.port $i }}
        {{- end }}
      startupProbe:
        httpGet: {path: /healthz, port: ops}
        periodSeconds: 2
        failureThreshold: 30
      livenessProbe:
        httpGet: {path: /healthz, port: ops}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        httpGet: {path: /readyz, port: ops}
        periodSeconds: 2
        timeoutSeconds: 2
        failureThreshold: 2
      securityContext:
        {{- include "scs.containerSecurity" . | nindent 8 }}
      resources:
        {{- toYaml $cache.resources | nindent 8 }}
      volumeMounts:
        - name: buckets
          mountPath: /etc/scs
          readOnly: true
        {{- if $authenticated }}
        - name: peer-key
          mountPath: /etc/scs-peer
          readOnly: true
        {{- end }}
        - name: tmp
          mountPath: /tmp
        {{- include "scs.dataMounts" . | trim | nindent 8 }}
  volumes:
    - name: buckets
      configMap:
        name: {{ include "scs.bucketsName" . }}
    {{- if $authenticated }}
    - name: peer-key
      secret:
        secretName: {{ include "scs.peerKeyName" . }}
        defaultMode: 0440
    {{- end }}
    - name: tmp
      emptyDir:
        sizeLimit: 64Mi
    {{- if $onHost }}
    {{- range $i, $path := $storage.hostPath.paths }}
    - name: data-{{ $i }}
      hostPath:
        path: {{ tpl $path $ | quote }}
        type: {{ $storage.hostPath.type }}
    {{- end }}
    {{- end }}
{{- end -}}

{{- define "scs.dataMounts" -}}
{{- range $i := until (int (include "scs.directories" .)) }}
- name: data-{{ $i }}
  mountPath: /var/lib/scs/{{ $i }}
{{- end }}
{{- end -}}
