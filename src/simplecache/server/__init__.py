"""The data plane: one shard, in the order in which a request meets its files."""
