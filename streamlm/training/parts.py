"""A step on ranks that hold a part of the weights each, by fully_shard (FSDP2).

Imported only where weights are divided: the tensors behind it take two seconds to import.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from streamlm.models.base import Model
from streamlm.training.config import TrainConfig
from streamlm.training.copies import Copies
from streamlm.training.group_step import GroupStep
from streamlm.training.ranks import Ranks


class Parts(Copies):
    """A `GroupStep` whose weights, gradients and moments are divided among the ranks.

    The step's parameters are replaced by parts of themselves: optimisers are made afterwards.

    Raises:
        ValueError: a setting does not go with `TrainConfig.shard`; names it.
    """

    def __init__(self, step: GroupStep, config: TrainConfig, ranks: Ranks) -> None:
        check_shard(step.model, config, ranks)
        self._n = ranks.n
        mesh = init_device_mesh(step.device.type, (ranks.n,))
        if config.shard == "layers":
            for layer in cast(nn.ModuleList, step.model.layers):
                fully_shard(layer, mesh=mesh)
        fully_shard(step, mesh=mesh)
        self._module = step
        # Layers return views of what they compute, which nothing overwrites.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")

    def __call__(self, *args: Any) -> Any:
        """See `GroupStep.forward`; the loss is multiplied by the ranks.

        fully_shard divides the sum of all gradients by their number.
        """
        loss, state, sums = self._module(*args)
        return loss * self._n, state, sums

    @contextmanager
    def adding(self, *, last: bool) -> Iterator[None]:
        """See `Copies.adding`."""
        cast(FSDPModule, self._module).set_requires_gradient_sync(last)
        yield

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """See `Copies.gathered`; all weights are in memory at once."""
        divided = [each for each in self._module.modules() if isinstance(each, FSDPModule)]
        for each in divided:
            each.unshard()
        try:
            yield
        finally:
            for each in divided:
                each.reshard()

    def whole(self, value: Any) -> Any:
        """See `Copies.whole`; gathered tensors are on the CPU."""
        if isinstance(value, dict):
            return {name: self.whole(each) for name, each in value.items()}
        if isinstance(value, list):
            return [self.whole(each) for each in value]
        return value.full_tensor().detach().cpu() if isinstance(value, DTensor) else value

    def norm(self, value: Tensor) -> Tensor:
        """See `Copies.norm`."""
        return value.full_tensor() if isinstance(value, DTensor) else value

    def part(self, value: Tensor, like: Tensor) -> Tensor:
        """See `Copies.part`."""
        if not isinstance(like, DTensor) or value.shape != like.shape:
            return value
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def check_shard(model: Model, config: TrainConfig, ranks: Ranks) -> None:
    """Check that the weights of a run can be divided.

    Raises:
        ValueError: names the given and the allowed value.
    """
    given = f"shard = {config.shard!r}"
    if not ranks.distributed:
        raise ValueError(f"{given} in one process; allowed: a run that torchrun has started")
    if model.config.cutoffs:  # which bins get gradients depends on the targets of each rank
        raise ValueError(f"{given} with cutoffs; allowed: shard = ''")
    if config.rows_at_once < 0:  # a rank out of memory would leave the others waiting for weights
        raise ValueError(f"{given} with rows_at_once = -1; allowed: rows_at_once = 0 or a number")
    if config.compile:
        raise ValueError(f"{given} with compile = true; allowed: compile = false")
