"""GroupStep: the part of a training step that reads rows of a group, as one `forward`.

Every use of a weight is inside `forward`, which is what DistributedDataParallel and fully_shard
watch. Ranks and groups are alike: each adds its gradients to those of the step.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from streamlm.models.base import Model
from streamlm.state import State
from streamlm.training.config import TrainConfig
from streamlm.training.data import Batch
from streamlm.training.losses import target_loss
from streamlm.transfer import send


class GroupStep(nn.Module):
    """Reads consecutive segments of some rows, with gradients, and sums their losses."""

    def __init__(self, model: Model, config: TrainConfig, device: torch.device) -> None:
        super().__init__()
        self.model, self.device = model, device
        self._bfloat16 = config.precision == "bfloat16"
        self._read: Callable[..., Any] = self._read_segment
        if config.compile:
            self._read = torch.compile(self._read_segment, dynamic=False)

    def forward(
        self, batches: Sequence[Batch], state: State, n_tokens: int, share: float
    ) -> tuple[Tensor, State, Tensor]:
        """Read one segment of every row per batch.

        Args:
            batches: consecutive segments.
            state: of the rows, before the first of them.
            n_tokens: targets of the whole step, over all groups and ranks.
            share: that of one segment of these rows in the mean over segments and rows.

        Returns:
            The rows' part of the step's loss, in which the compression loss is a sum; the
            state after the last segment, detached; and [4] float64 sums: nats; the head's loss;
            the compression loss times its weight; that weight.
        """
        context: Any = contextlib.nullcontext()
        if self._bfloat16:  # one context for all segments, so that each weight is cast once
            context = torch.autocast(self.device.type, dtype=torch.bfloat16)
        with context:
            return self._read_all(batches, state, n_tokens, share)

    def _read_all(
        self, batches: Sequence[Batch], state: State, n_tokens: int, share: float
    ) -> tuple[Tensor, State, Tensor]:
        loss = torch.zeros((), device=self.device)
        sums = torch.zeros(4, device=self.device, dtype=torch.float64)
        for batch in batches:
            inputs, targets = (send(each, self.device) for each in (batch.inputs, batch.targets))
            if bool(batch.begins.any()):
                state = state.reset_rows(batch.begins)
            wanted = batch.targets if self.model.config.cutoffs else targets
            nats, added, compression, weight, state = self._read(inputs, wanted, state)
            compression = compression * weight
            loss = loss + nats / max(n_tokens, 1) + added * share + compression
            parts = (nats, added * share, compression, weight)
            sums += torch.stack([part.detach().double() for part in parts])
        return loss, state.detach(), sums

    def _read_segment(self, inputs: Tensor, targets: Tensor, state: State) -> Any:
        hidden, state = self.model.hidden(inputs, state)
        nats = target_loss(self.model, hidden, targets)
        added = self.model.segment_loss(state)
        state, eviction = self.model.commit(state)
        added = nats.new_zeros(()) if added is None else added.float()
        compression = weight = nats.new_zeros(())
        if eviction is not None:
            compression, weight = self.model.auxiliary_loss(eviction)
            compression, weight = compression.float(), weight.float()
        return nats, added, compression, weight, state

    @contextlib.contextmanager
    def uncompiled(self) -> Iterator[None]:
        """A block in which segments are read without torch.compile."""
        read, self._read = self._read, self._read_segment
        try:
            yield
        finally:
            self._read = read
