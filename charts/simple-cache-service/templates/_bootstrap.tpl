{{/* Envoy's bootstrap: the same document as control/bootstrap.py makes (a test compares them), without the node,
     which each Envoy is told by its flags. All else comes from the control plane. */}}
{{- define "scs.xdsHost" -}}
{{- if .Values.envoy.xdsHost -}}
{{- .Values.envoy.xdsHost -}}
{{- else -}}
{{- include "scs.host" (list . (include "scs.xdsName" .)) -}}
{{- end -}}
{{- end -}}

{{- define "scs.bootstrap" -}}
{{- $host := include "scs.xdsHost" . -}}
{{- $isAddress := or (contains ":" $host) (regexMatch "^[0-9]+(\\.[0-9]+){3}$" $host) -}}
admin:
  address: {pipe: {path: /run/scs/admin.sock, mode: 0600}}
  allow_paths:
    - {exact: /ready}
    - {exact: /stats/prometheus}
    - {exact: /clusters}
    - {exact: /certs}
    - {prefix: /drain_listeners}
    - {prefix: /healthcheck/}
    - {prefix: /config_dump}
    - {prefix: /stats}
dynamic_resources:
  ads_config:
    api_type: GRPC
    transport_api_version: V3
    set_node_on_first_message_only: true
    grpc_services:
      - envoy_grpc: {cluster_name: xds}
  # 0s: wait for ever. /ready says no until the first configuration is in force.
  cds_config: {ads: {}, resource_api_version: V3, initial_fetch_timeout: 0s}
  lds_config: {ads: {}, resource_api_version: V3, initial_fetch_timeout: 0s}
overload_manager:
  resource_monitors:
    - name: envoy.resource_monitors.global_downstream_max_connections
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig
        max_active_downstream_connections: 50000
layered_runtime:
  layers:
    - name: static
      static_layer:
        scs: {log_status: 500, log_sample: 0}
static_resources:
  clusters:
    - name: xds
      type: {{ $isAddress | ternary "STATIC" "STRICT_DNS" }}
      connect_timeout: 1s
      typed_extension_protocol_options:
        envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
          "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
          explicit_http_config:
            http2_protocol_options:
              connection_keepalive: {interval: 30s, timeout: 5s}
      load_assignment:
        cluster_name: xds
        endpoints:
          - lb_endpoints:
              - endpoint:
                  address:
                    socket_address: {address: {{ $host | quote }}, port_value: {{ .Values.controlPlane.xdsPort }}}
    - name: admin
      type: STATIC
      connect_timeout: 1s
      load_assignment:
        cluster_name: admin
        endpoints:
          - lb_endpoints:
              - endpoint:
                  address: {pipe: {path: /run/scs/admin.sock}}
  listeners:
    - name: ops
      address:
        socket_address: {address: {{ .Values.bindAddress | quote }}, port_value: {{ .Values.envoy.opsPort }}}
      # Probes and metrics must get through when clients use up all connections.
      ignore_global_conn_limit: true
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: ops
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
                route_config:
                  name: ops
                  virtual_hosts:
                    - name: ops
                      domains: ["*"]
                      routes:
                        - match: {path: /ready}
                          route: {cluster: admin}
                        - match: {path: /stats/prometheus}
                          route: {cluster: admin}
{{- end -}}
