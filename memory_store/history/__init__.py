"""The commits of a session: written, found, and loaded again."""
