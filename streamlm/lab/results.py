"""Result files: figures with the command, settings and machine that produced them."""

import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def cpu_model() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe(device: torch.device | str = "cpu") -> dict[str, Any]:
    """The machine description of result files."""
    facts: dict[str, Any] = {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "cores_used": usable_cores(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(device),
    }
    if torch.device(device).type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
    return facts


def write_results(
    path: Path, *, settings: Mapping[str, Any], figures: Mapping[str, Any], device: object = "cpu"
) -> None:
    """Write a command's results as JSON: its call, the machine, the settings, the figures."""
    main = Path(sys.argv[0])
    benchmark = main.parent.name == "benchmarks"
    name = f"python -m benchmarks.{main.stem}" if benchmark else "streamlm"
    results = {
        "command": " ".join([name, *sys.argv[1:]]),
        "made": time.strftime("%Y-%m-%d"),
        "machine": describe(str(device)),
        "settings": dict(settings),
        "figures": dict(figures),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def peak_memory() -> int:
    """The largest resident set of the process in bytes, since its start or `reset_peak_memory`.

    Reads Linux's VmHWM: ru_maxrss is inherited from the parent process.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory() -> bool:
    """Reset `peak_memory`; False if the system does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
