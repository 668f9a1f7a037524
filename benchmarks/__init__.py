"""One command per figure of the README: `python -m benchmarks.stream`, `.books`, `.gpu`."""
