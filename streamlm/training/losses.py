"""The loss of the language model."""

from torch import Tensor
from torch.nn import functional as F

from streamlm.models.base import Model


def language_model_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed negative log-likelihood in nats; targets of -100 are not scored.

    Args:
        logits: [..., V]; targets: [...] ids.
    """
    flat = logits.flatten(0, -2).float()
    return F.cross_entropy(flat, targets.flatten(), ignore_index=-100, reduction="sum")


def target_loss(model: Model, hidden: Tensor, targets: Tensor) -> Tensor:
    """`language_model_loss` of the output layer; with cutoffs, only for the bins of the targets.

    Args:
        hidden: [..., D] from `Model.hidden`.
        targets: [...] ids; with cutoffs preferably on the host, see `Model.log_prob`.
    """
    if model.config.cutoffs:
        return -model.log_prob(hidden, targets).sum()
    return language_model_loss(model.logits(hidden), targets)
