"""Forecasting series: the Informer in its own form, and what it is compared with."""
