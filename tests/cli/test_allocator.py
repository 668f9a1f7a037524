"""With glibc, freed memory is kept or returned as set."""

import platform
import subprocess
import sys

import pytest

# Maps and unmaps 64 MB repeatedly, and counts the page faults of the later rounds.
ROUNDS = """
import resource, sys, torch
from streamlm.cli.allocator import keep_freed_memory, return_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
if sys.argv[1] == "return":
    assert return_freed_memory()
def step():
    torch.zeros(1 << 24).add_(1)
for _ in range(3): step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20): step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    command = [sys.executable, "-c", ROUNDS, mode]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_large_blocks_are_reused() -> None:
    assert faults("keep") * 5 < faults("not")


# Frees a block of 16 MB, which raises glibc's threshold, then one that a small block separates
# from the end of the heap, and prints the bytes of the second that the process still holds.
HELD = """
import sys, torch
from streamlm.cli.allocator import return_freed_memory
if sys.argv[1] == "return":
    assert return_freed_memory()
def resident():
    return int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0])
torch.zeros(1 << 22).add_(1)
before = resident()
large = torch.zeros(1 << 22).add_(1)
small = [torch.zeros(1 << 8) for _ in range(64)]
del large
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_large_blocks_are_returned() -> None:
    def held(mode: str) -> int:
        command = [sys.executable, "-c", HELD, mode]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert held("return") < 1024  # KB
    assert held("not") > 3072


# Like the activations of a segment: smaller than what is returned.
SMALL = ROUNDS.replace("1 << 24", "1 << 20")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_activations_are_not_mapped_anew() -> None:
    command = [sys.executable, "-c", SMALL, "return"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(found) < 20 * 1024 // 4  # 20 blocks of 4 MB have 20,480 pages of 4 KB
