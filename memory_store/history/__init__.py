"""The commits of a session: writing, reading, loading, walking, and the refs that name them."""
