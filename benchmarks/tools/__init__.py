"""What the benchmarks share: the machine, timing side by side, compressors, pictures."""
