"""Models: (tokens, state) → (logits, state'). No text, no disk."""
