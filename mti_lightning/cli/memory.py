"""Memory that is given back is kept by the process: on CPU this saves much of the time."""

import ctypes
import os
import sys

# For glibc's own variables: the parameter of its malloc.h that each sets, and a value.
_PARAMETERS = {
    "MALLOC_MMAP_MAX_": (-4, 0),
    "MALLOC_TRIM_THRESHOLD_": (-1, -1),  # never
    "MALLOC_TOP_PAD_": (-2, 500_000_000),  # bytes
}


def keep_memory() -> None:
    """Have glibc keep large tensors' memory, which it otherwise takes from the kernel each time.

    A variable that the environment sets is left as it is, and so is any other C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    for variable, (parameter, value) in _PARAMETERS.items():
        if mallopt is not None and variable not in os.environ:
            mallopt(parameter, value)
