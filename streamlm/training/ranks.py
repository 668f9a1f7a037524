"""Ranks: the processes of one training run, started by torchrun.

Gradients and sums travel between devices; what the hosts agree on (counts, saves) travels between
hosts, so that no device waits for it.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from streamlm.checkpoints.checkpoint import choose_device

STARTED_BY = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
PATIENCE = timedelta(days=7)  # of hosts: one may encode a large corpus while the others wait


@dataclass(frozen=True)
class Ranks:
    """This process among those of a run; by default there is only one.

    Attributes:
        rank: from 0 to n - 1; n: processes of the run, on all machines.
        device: what this process trains on; None leaves the choice to the trainer.
        distributed: whether collectives are needed; see `joined`.
    """

    rank: int = 0
    n: int = 1
    device: torch.device | None = None
    distributed: bool = False
    hosts: Any = None  # the process group of the hosts

    @property
    def leads(self) -> bool:
        """Whether this process encodes, logs and saves weights."""
        return self.rank == 0

    def total(self, *counts: int) -> list[int]:
        """The sums over all ranks of integers on the host."""
        if not self.distributed:
            return list(counts)
        sums = torch.tensor(counts, dtype=torch.int64)
        dist.all_reduce(sums, group=self.hosts)
        return sums.tolist()

    def least(self, count: int) -> int:
        """The least of an integer on each host."""
        if not self.distributed:
            return count
        found = torch.tensor(count, dtype=torch.int64)
        dist.all_reduce(found, op=dist.ReduceOp.MIN, group=self.hosts)
        return int(found)

    def add_(self, sums: Tensor) -> None:
        """Replace a tensor on the device by its sum over all ranks."""
        if self.distributed:
            dist.all_reduce(sums)

    def wait(self) -> None:
        """Wait until every rank is here."""
        if self.distributed:
            dist.barrier(group=self.hosts)

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """A block that the other ranks enter when rank 0 has left it."""
        if not self.leads:
            self.wait()
        yield
        if self.leads:
            self.wait()

    def check_shared(self, folder: Path) -> None:
        """Check that all ranks see the same folder, which is made if it is missing.

        Raises:
            ValueError: some do not; on every rank.
        """
        if not self.distributed:
            return
        mark, token = folder / ".ranks", [secrets.token_hex(8)]
        if self.leads:
            folder.mkdir(parents=True, exist_ok=True)
            mark.write_text(token[0], encoding="utf-8")
        dist.broadcast_object_list(token, src=0, group=self.hosts)
        seen = mark.exists() and mark.read_text(encoding="utf-8") == token[0]
        (n_seeing,) = self.total(int(seen))
        if self.leads:
            mark.unlink()
        if n_seeing < self.n:
            raise ValueError(
                f"{self.n - n_seeing} of {self.n} ranks do not see {folder}; allowed: a folder "
                "that all machines of the run share"
            )


@contextmanager
def joined(device: str = "auto") -> Iterator[Ranks]:
    """Join the run that torchrun has started this process for; without torchrun, be alone.

    Args:
        device: "cuda" and "auto" give each rank of a machine a GPU of its own.

    Raises:
        ValueError: unknown device, or fewer GPUs than ranks on this machine.
    """
    if not all(name in os.environ for name in STARTED_BY):
        yield Ranks(device=choose_device(device))
        return
    local, chosen = int(os.environ["LOCAL_RANK"]), choose_device(device)
    if chosen.type == "cuda":
        chosen = choose_device(f"cuda:{local}" if chosen.index is None else chosen)
        torch.cuda.set_device(chosen)
    dist.init_process_group(
        "nccl" if chosen.type == "cuda" else "gloo",
        device_id=chosen if chosen.type == "cuda" else None,
    )
    try:
        hosts = dist.new_group(backend="gloo", timeout=PATIENCE)
        yield Ranks(dist.get_rank(), dist.get_world_size(), chosen, True, hosts)
    finally:
        dist.destroy_process_group()
