"""One shard's storage: files that describe themselves, and an SQLite index over them."""
