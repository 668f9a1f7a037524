"""Counts what a model projects: nothing may be projected twice."""

from typing import Any

from torch import Tensor

from streamlm.models.base import Model


def count_projections(model: Model) -> list[list[int]]:
    """The slots of each call of the key and value projection, by layer.

    Single tokens may take a `step` instead of the layers' modules; it projects one slot in each.
    """
    frozen = model.frozen
    layers: Any = (frozen and frozen.layers) or model.layers
    calls: list[list[int]] = [[] for _ in layers]
    for index, layer in enumerate(layers):
        layer.attention.key_value.register_forward_hook(
            lambda module, inputs, output, at=index: calls[at].append(inputs[0].shape[1])
        )
    step: Any = getattr(model, "step", None)
    if step is not None:

        def counted(x: Tensor, **others: Any) -> Any:
            for each in calls:
                each.append(x.shape[0])
            return step(x, **others)

        model.step = counted  # type: ignore[assignment]
    return calls
