"""Building blocks of models: attention, blocks, positions, embeddings."""
