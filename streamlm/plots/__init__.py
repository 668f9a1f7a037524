"""Plots: the modules that import matplotlib."""
