"""HTML and SVG: scored text, the memory, progress, and comparison curves."""
