"""A whole cluster on one machine: cache nodes, control plane and Envoy as child processes."""
