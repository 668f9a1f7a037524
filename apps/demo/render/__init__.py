"""Text, memories and comparisons as HTML and SVG."""
