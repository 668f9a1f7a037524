"""The bytes of a session: its JSON documents, its arrays, and the archives that hold them."""
