"""`python -m tests.soak`: run the soak tests and print counts; see `make soak`."""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from streamlm.checkpoints.checkpoint import load_checkpoint
from tests.soak.commands import Tally, tiny_model
from tests.soak.crafted import crafted
from tests.soak.damage import damages
from tests.soak.inputs import inputs
from tests.soak.kills import kills
from tests.soak.races import races
from tests.soak.requests import requests

FULL = {
    **{"kills": 1000, "races": 500, "damages": 2000, "crafted": 600},
    **{"inputs": 500, "requests": 2000},
}
SHOWN = 20  # faults


def main() -> int:
    """Run what is asked for; the exit status is 1 if there is a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    for name, count in FULL.items():
        parser.add_argument(f"--{name}", type=int, default=count, help=f"default: {count}")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="streamlm-soak-"))
    try:
        model_folder = tiny_model(folder / "model")
        model, seed = load_checkpoint(model_folder, device="cpu"), asked.seed
        soaks: dict[str, Callable[[Path, int], Tally]] = {
            "kills": lambda place, n: kills(place, model, n, seed),
            "races": lambda place, n: races(place, model, n),
            "damages": lambda place, n: damages(place, model, n, seed),
            "crafted": lambda place, n: crafted(place, model, model_folder, n, seed),
            "inputs": lambda place, n: inputs(place, model_folder, n, seed),
            "requests": lambda place, n: requests(place, model_folder, n, seed),
        }
        faults = 0
        for name, soak in soaks.items():
            count = getattr(asked, name)
            if not count:
                continue
            place, started = folder / name, time.perf_counter()
            place.mkdir()
            tally = soak(place, count)
            seen = ", ".join(f"{n} {what}" for what, n in sorted(tally.counts.items()))
            print(
                f"{name}: {count} tried, {len(tally.faults)} faults ({seen}); "
                f"{time.perf_counter() - started:.0f} s",
                flush=True,
            )
            for fault in tally.faults[:SHOWN]:
                print(f"  {fault}", flush=True)
            faults += len(tally.faults)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
