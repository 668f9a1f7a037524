"""Reading, scoring and sampling as pure functions. No disk."""
