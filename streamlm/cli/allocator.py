"""Settings for constant memory: of glibc's allocator, and of oneDNN's cache of kernels.

They affect the whole process, so programs call them, and the library does not.
"""

import ctypes
import os

# Parameters of glibc's mallopt(3), from its malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4


def keep_freed_memory() -> bool:
    """Make glibc keep large freed blocks for reuse. For training.

    By default a tensor of more than 32 MB, such as the logits of a step, is mapped, zeroed page by
    page and unmapped each time. With this setting, memory used once stays with the process.

    Returns:
        False without glibc, where nothing is changed.
    """
    return _set((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, 1 << 26))


def return_freed_memory() -> bool:
    """Make glibc return freed blocks of 8 MB or more to the system at once. For long reading.

    By default glibc soon keeps blocks of the size of a segment's logits on its heap, where smaller,
    longer-lived blocks fragment them: now and then the process grows by 10 to 20 %. A segment's
    activations are smaller, and there are hundreds: to map each of them anew takes as long as to
    compute them.

    Returns:
        False without glibc, where nothing is changed.
    """
    return _set((MMAP_THRESHOLD, 1 << 23), (TRIM_THRESHOLD, 1 << 25))


def keep_few_kernels() -> None:
    """Make oneDNN keep the last 128 kernels it compiled, not 1,024. Call it before torch computes.

    A model in bfloat16 has a few kernels for each number of tokens that is read at once, of up to
    1 MB each: without this, the process grows by some hundred MB as it meets one after the other.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")


def _set(*settings: tuple[int, int]) -> bool:
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(name, value) == 1 for name, value in settings)
