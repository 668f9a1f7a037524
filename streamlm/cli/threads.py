"""How torch's threads wait for each other.

GNU's OpenMP lets a thread that waits spin for milliseconds, as if it had a core for itself. Beside
another program it has none: the thread that it waits for stands in line for the core that it spins
on, again and again, at every product. Reading then takes ten times as long.
"""

import os

# Turns of a waiting loop after which a thread sleeps: some ten microseconds, in which the next
# product of a model usually begins. OpenMP's own number where threads outnumber cores.
SPINS = "1000"


def wait_asleep() -> None:
    """Let waiting threads sleep soon, unless the environment says how they wait.

    Call it before torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
