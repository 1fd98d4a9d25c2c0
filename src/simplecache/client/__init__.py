"""The Python client: a sans-I/O message layer and thin shells around it."""
