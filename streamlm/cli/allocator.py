"""How glibc treats large freed blocks: tensors are some of the largest that programs ask for.

The whole process is concerned, so these are for a program to call and not for the library.
"""

import ctypes

# Parameters of glibc's mallopt(3), from its malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4


def keep_freed_memory() -> bool:
    """Tell glibc to keep large freed blocks for reuse instead of giving them back to the system.

    For training. A tensor of more than 32 MB, such as the logits of a step, is otherwise mapped,
    filled with zeros page by page and unmapped each time. Memory that was used once stays with the
    process.

    Returns:
        False where there is no glibc, and nothing is changed.
    """
    return _set((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, 1 << 26))


def return_freed_memory() -> bool:
    """Tell glibc to give freed blocks of 1 MB and more back to the system at once.

    For reading without end. Unless told, glibc soon keeps blocks as large as a segment's logits on
    its heap, where small ones that live longer come to lie between them: at odd moments the process
    grows by a tenth or two.

    Returns:
        False where there is no glibc, and nothing is changed.
    """
    return _set((MMAP_THRESHOLD, 1 << 20))


def _set(*settings: tuple[int, int]) -> bool:
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(name, value) == 1 for name, value in settings)
