"""What models are made of: attention, blocks, positions, embeddings."""
