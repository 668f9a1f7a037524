"""Measuring and comparing models."""
