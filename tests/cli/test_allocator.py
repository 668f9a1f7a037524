"""With glibc, freed memory is kept or returned as set."""

import platform
import subprocess
import sys

import pytest

# Prints a figure for each pair of a measure and a setting, from a process of its own: a fork of one
# that has imported torch.
PROGRAM = """
import os, resource, sys, torch
from streamlm.cli.allocator import keep_freed_memory, return_freed_memory

def faults(size, rounds):
    # Maps and unmaps memory repeatedly, and counts the page faults of the later rounds.
    def step():
        torch.zeros(size).add_(1)
    for _ in range(3): step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds): step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def held():
    # Frees a block of 16 MB, which raises glibc's threshold, then one that a small block separates
    # from the end of the heap: the kilobytes of the second that the process still holds.
    def resident():
        return int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0])
    torch.zeros(1 << 22).add_(1)
    before = resident()
    large = torch.zeros(1 << 22).add_(1)
    small = [torch.zeros(1 << 8) for _ in range(64)]
    del large
    return resident() - before

MEASURES = {
    "large": lambda: faults(1 << 24, 16),
    "small": lambda: faults(1 << 20, 20),  # like the activations of a segment
    "held": held,
}
SETTINGS = {"keep": keep_freed_memory, "return": return_freed_memory, "not": lambda: True}
for wanted in sys.argv[1:]:
    child = os.fork()
    if not child:
        measure, setting = wanted.split()
        assert SETTINGS[setting]()
        print(MEASURES[measure](), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
WANTED = ("large keep", "large not", "held return", "held not", "small return")


@pytest.fixture(scope="module")
def measured() -> dict[str, int]:
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("needs glibc")
    command = [sys.executable, "-c", PROGRAM, *WANTED]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(zip(WANTED, map(int, out.split()), strict=True))


def test_freed_large_blocks_are_reused(measured: dict[str, int]) -> None:
    assert measured["large keep"] * 5 < measured["large not"]


def test_freed_large_blocks_are_returned(measured: dict[str, int]) -> None:
    assert measured["held return"] < 1024  # KB
    assert measured["held not"] > 3072


def test_activations_are_not_mapped_anew(measured: dict[str, int]) -> None:
    # 20 blocks of 4 MB have 20,480 pages of 4 KB. Smaller blocks than these are returned.
    assert measured["small return"] < 20 * 1024 // 4
