"""Time-series forecasting: the Informer, the Transformer and linear controls."""
