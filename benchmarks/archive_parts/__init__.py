"""Parts of `benchmarks.archive`."""
