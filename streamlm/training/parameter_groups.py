"""Parameters that are trained, and the optimiser's groups: matrices decay, others do not."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from streamlm.models.base import Model
from streamlm.training.config import TrainConfig


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix, a stack of matrices, a convolution or an embedding table.

    Biases, gains and gates are not, whatever their shape: u and w of relative attention, the biases
    of the queries, are [n, H, E].

    Args:
        name: as in `named_parameters`; the name of a bias ends with "bias", of a gate with ".gate".
    """
    return parameter.ndim >= 2 and not name.endswith(("bias", ".gate"))


def choose_parameters(model: Model, config: TrainConfig) -> None:
    """Give gradients to the parameters that are trained; see `TrainConfig.only`.

    Raises:
        ValueError: the compression alone is to be trained, and nothing trains it.
    """
    model.requires_grad_(not config.only)
    if not config.only:
        return
    compression = model.compression_parameters()
    if not compression or model.config.compression_loss in ("none", "bptt"):
        trained = f"{model.config.compression!r}, {model.config.compression_loss!r}"
        raise ValueError(
            f"only = 'compression' with compression and compression_loss {trained}; allowed: "
            "a compression with parameters, and a loss of its own"
        )
    for parameter in compression:
        parameter.requires_grad_(True)


def parameter_groups(module: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters with gradients in two groups: matrices, which decay, and others, which do not."""
    named = [(name, each) for name, each in module.named_parameters() if each.requires_grad]
    matrices = [(name, each) for name, each in named if is_matrix(name, each)]
    others = [(name, each) for name, each in named if not is_matrix(name, each)]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def regrouped(
    saved: Mapping[str, Any], optimizer: torch.optim.Optimizer, module: nn.Module
) -> dict[str, Any]:
    """A saved optimiser state rearranged for the groups of `optimizer`, by parameter name.

    A state without names comes from a version in which every parameter of two or more dimensions
    decayed.

    Args:
        saved: the `state_dict` of an optimiser of the same kind, made by `parameter_groups`.
        module: the module that the optimiser trains.

    Raises:
        ValueError: the state belongs to other parameters; names some of them.
    """
    shapes = {name: each.shape for name, each in module.named_parameters() if each.requires_grad}
    old = [group.get("param_names") for group in saved["param_groups"]]
    if None in old:
        wide = [name for name, shape in shapes.items() if len(shape) >= 2]
        old = [wide, [name for name, shape in shapes.items() if len(shape) < 2]]
    sizes = [len(group["params"]) for group in saved["param_groups"]]
    saved_names = {name for names in old for name in names}
    alike = sizes == [len(names) for names in old] and len(sizes) == len(optimizer.param_groups)
    if not alike or saved_names != shapes.keys():
        unlike = (
            ", ".join(sorted(saved_names ^ shapes.keys())[:3]) or f"groups of {sizes} parameters"
        )
        raise ValueError(f"the saved optimiser is of other parameters ({unlike}): begin a new run")
    moments = {
        name: saved["state"][number]
        for names, group in zip(old, saved["param_groups"], strict=True)
        for name, number in zip(names, group["params"], strict=True)
        if number in saved["state"]  # absent before the first step, or without a gradient
    }
    now = optimizer.state_dict()["param_groups"]
    kept = ("params", "param_names", "weight_decay")
    groups = [
        {**then, **{name: group[name] for name in kept}}
        for then, group in zip(saved["param_groups"], now, strict=True)
    ]
    state = {
        number: moments[name]
        for group in groups
        for name, number in zip(group["param_names"], group["params"], strict=True)
        if name in moments
    }
    return {"state": state, "param_groups": groups}
