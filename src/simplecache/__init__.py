"""Simple Cache Service: the NVMe of all nodes as one HTTP cache for training data."""

__all__ = ["__version__"]

__version__ = "0.1.0"
