"""What a CUDA device refuses."""


class Refused(RuntimeError):
    """An operation that a CUDA device would have refused; names the line of the project."""
