"""Compression and eviction of slots that leave memory, independent of models."""
