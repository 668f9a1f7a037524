"""Measurements and comparisons of models: causality, costs, variants, memory tasks."""
