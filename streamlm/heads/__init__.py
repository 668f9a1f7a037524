"""Other ways to treat what is far away, one file each."""
