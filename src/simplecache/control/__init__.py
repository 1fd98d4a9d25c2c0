"""The xDS control plane: where shards are known, and how Envoys learn of them."""
