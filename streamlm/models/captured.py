"""Captured: work on a CUDA device that is replayed as a graph.

Launching the kernels of one token takes the host longer than running them takes the device. A CUDA
graph launches all of them at once. It repeats the same kernels on the same memory, so the work must
have the same shapes in every call, must not ask the device for anything, and its results lie where
they lay before.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

WARM = 16  # calls before the work is captured, which must pay for itself
Work = Callable[..., tuple[Tensor, ...]]


class Captured:
    """A function of tensors, called until it is worth capturing, and then replayed.

    Args:
        work: called with the inputs and the buffers. It may write to buffers; doing so twice with
            the same inputs must leave what doing so once leaves.
        weights: what `work` reads besides, by identity; it belongs to these for good.
        after: calls before it is captured; default `WARM`.
    """

    def __init__(self, work: Work, weights: object, *, after: int | None = None) -> None:
        self.weights = weights
        self._work, self._after = work, WARM if after is None else after
        self._calls = 0
        self._buffers: tuple[Tensor, ...] = ()
        self._inputs: tuple[Tensor, ...] = ()
        self._graph: tuple[Callable[[], Any], tuple[Tensor, ...]] | None = None
        self._failed = False

    def __call__(self, inputs: tuple[Tensor, ...], buffers: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """`work(*inputs, *buffers)`; the results belong to the caller.

        Args:
            inputs: copied, so they may lie anywhere; of the same shapes in every call.
            buffers: read and written where they are. With other ones, the work is captured anew.
        """
        if not self._has(buffers):
            self.forget()
            self._buffers = tuple(buffers)
        if self._graph is None:
            self._calls += 1
            if self._failed or self._calls <= self._after or not can_capture(inputs[0].device):
                return self._work(*inputs, *buffers)
            if not self._capture(inputs):
                return self._work(*inputs, *buffers)
        assert self._graph is not None
        replay, results = self._graph
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        replay()
        return tuple(result.clone() for result in results)

    def forget(self) -> None:
        """Release the graph and the buffers; later calls begin anew."""
        self._graph, self._buffers, self._inputs, self._calls = None, (), (), 0

    def _has(self, buffers: Sequence[Tensor]) -> bool:
        """Whether these are the buffers of the last call: a graph knows their addresses."""
        mine = self._buffers
        return len(mine) == len(buffers) and all(
            one.data_ptr() == other.data_ptr() and one.shape == other.shape
            for one, other in zip(mine, buffers, strict=True)
        )

    def _capture(self, inputs: tuple[Tensor, ...]) -> bool:
        self._inputs = tuple(each.clone() for each in inputs)
        try:
            device = inputs[0].device
            self._graph = capture(lambda: self._work(*self._inputs, *self._buffers), device)
        except RuntimeError as error:  # also where the device's memory is full
            self._failed, self._inputs = True, ()
            first = str(error).strip().partition("\n")[0]
            warnings.warn(
                f"the step of a token could not be captured as a CUDA graph, so it is launched "
                f"kernel by kernel, which is slower: {first}",
                RuntimeWarning,
                stacklevel=2,
            )
        return self._graph is not None


def can_capture(device: torch.device) -> bool:
    """Whether the device and this build of PyTorch have CUDA graphs."""
    return device.type == "cuda" and torch.backends.cuda.is_built()


def capture(
    work: Callable[[], tuple[Tensor, ...]], device: torch.device
) -> tuple[Callable[[], Any], tuple[Tensor, ...]]:
    """Do work a few times and record it: what replays it, and where its results lie.

    Raises:
        RuntimeError: an operation cannot be captured.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries allocate their workspaces in the first calls
            for _ in range(2):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        # Other threads may go on using the device meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            results = work()

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return replay, results
