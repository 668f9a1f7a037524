"""Model checkpoints on disk, and their conversion."""
