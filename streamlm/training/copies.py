"""A step on one or more ranks that hold all weights each, by DistributedDataParallel."""

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from streamlm.training.group_step import GroupStep
from streamlm.training.ranks import Ranks

_PARAMETERS = inspect.signature(DistributedDataParallel).parameters
_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _PARAMETERS else "broadcast_buffers"


class Copies:
    """A `GroupStep` whose gradients are added up over all ranks.

    `streamlm.training.parts.Parts` is its counterpart for weights that are divided among ranks.
    """

    def __init__(self, step: GroupStep, ranks: Ranks) -> None:
        self._module: nn.Module = step
        if ranks.distributed:
            model, config = step.model, step.model.config
            # Bins without targets get no gradient, nor do compressors without a loss.
            declared = config.compression_loss == "none" and bool(model.compression_parameters())
            module = DistributedDataParallel(
                step,
                find_unused_parameters=declared or bool(config.cutoffs),
                **cast(Any, {_BUFFERS: False}),  # they are alike and stay so
            )
            module.register_comm_hook(None, _added)
            # Of gradients with a dimension of size 1, whose stride means nothing.
            warnings.filterwarnings("ignore", message="Grad strides do not match")
            self._module = module

    def __call__(self, *args: Any) -> Any:
        """See `GroupStep.forward`."""
        return self._module(*args)

    @contextmanager
    def adding(self, *, last: bool) -> Iterator[None]:
        """A block with the passes of one group; gradients of all ranks are added in the last."""
        apart = isinstance(self._module, DistributedDataParallel) and not last
        with self._module.no_sync() if apart else nullcontext():  # type: ignore[operator]
            yield

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """A block in which the model of this rank has all weights."""
        yield

    def whole(self, value: Any) -> Any:
        """A state dict without divided tensors; the same on every rank."""
        return value

    def norm(self, value: Tensor) -> Tensor:
        """A norm of gradients, from `clip_grad_norm_`, as a tensor of this rank's device."""
        return value

    def part(self, value: Tensor, like: Tensor) -> Tensor:
        """This rank's part of a whole tensor, divided as `like`."""
        return value

    def own_moments(
        self, saved: dict[str, Any], optimizer: torch.optim.Optimizer
    ) -> dict[str, Any]:
        """This rank's parts of a whole optimiser state with the same groups as `optimizer`."""
        given = [each for group in optimizer.param_groups for each in group["params"]]
        numbers = [number for group in saved["param_groups"] for number in group["params"]]
        like = dict(zip(numbers, given, strict=True))
        state = {
            number: {name: self.part(each, like[number]) for name, each in moments.items()}
            for number, moments in saved["state"].items()
        }
        return {**saved, "state": state}


def _added(
    _: None,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[Tensor]:
    """The sum of gradients. DDP would divide it, but a rank's loss is a share of all targets."""
    future = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    return future.then(lambda done: done.value()[0])
