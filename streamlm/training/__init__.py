"""Training and evaluation of models and drafters."""
