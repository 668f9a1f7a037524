"""torchrun for tests: processes of several ranks, and of several agents as on several machines."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def torchrun(
    *arguments: object, ranks: int = 2, folder: Path | None = None, agents: int = 1
) -> list["subprocess.CompletedProcess[str]"]:
    """Run `torchrun … -m ARGUMENTS` to its end, once for each agent, all at the same time."""
    here = ("--standalone",) if agents == 1 else _rendezvous(agents)
    command = [sys.executable, "-m", "torch.distributed.run", *here]
    command += ["--nproc-per-node", str(ranks), "-m", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(agents)
    ]
    done = []
    try:
        for process in running:
            out, err = process.communicate(timeout=300)
            done.append(subprocess.CompletedProcess(command, process.returncode, out, err))
    finally:
        for process in running:
            process.kill()
    return done


def _rendezvous(agents: int) -> tuple[str, ...]:
    """Options by which agents on this machine find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return (
        *("--nnodes", str(agents), "--rdzv-backend", "c10d", "--rdzv-id", "test"),
        *("--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1"),
    )
