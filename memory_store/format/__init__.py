"""The bytes of a session: JSON documents, arrays as Zarr chunks, and the archives around them."""
