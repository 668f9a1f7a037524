"""Keep freed memory, for programs that ask for the same large tensors again in every step."""

import ctypes

# Parameters of glibc's mallopt(3), from its malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell glibc to keep large freed blocks for reuse instead of giving them back to the system.

    A tensor of more than 32 MB, such as the logits of a training step, is otherwise mapped, filled
    with zeros page by page and unmapped each time. The whole process is concerned, so this is for
    a program to call and not for the library; memory that was used once stays with the process.

    Returns:
        False where there is no glibc, and nothing is changed.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, 1 << 26))
    return all(mallopt(name, value) == 1 for name, value in settings)
