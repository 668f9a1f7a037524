"""The parts of `benchmarks.gpu`: each module measures one thing, and has `measure(part)`."""
