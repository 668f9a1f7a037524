"""Event files for TensorBoard: what `log.jsonl` has of a run, as curves."""

from pathlib import Path
from typing import Any

from streamlm.training.step import Step

TAGS = {
    "loss": "train/nats_per_token",
    "bits_per_byte": "train/bits_per_byte",
    "valid_bits_per_byte": "valid/bits_per_byte",
    "compression_loss": "train/compression_loss",
    "gradient_norm": "train/gradient_norm",
    "learning_rate": "train/learning_rate",
    "tokens_per_second": "train/tokens_per_second",
    "tokens": "train/tokens",
}


def load_writer() -> Any:
    """`SummaryWriter` of torch, which needs the package `tensorboard`.

    Raises:
        ValueError: it is not installed; says how to.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError(
            "event files need the package tensorboard: pip install 'streamlm[tensorboard]'"
        ) from None
    return SummaryWriter


class EventLog:
    """Writes the reports of a run to a folder that TensorBoard reads.

    Args:
        folder: may hold the events of the same run until it was interrupted.
        step: the last step that counts; TensorBoard then hides later ones in the folder.

    Raises:
        ValueError: the package `tensorboard` is not installed.
    """

    def __init__(self, folder: str | Path, *, step: int = 0) -> None:
        purge = {"purge_step": step + 1} if step else {}
        self._writer = load_writer()(str(folder), **purge)

    def add(self, report: Step) -> None:
        """Write the values of a step; those that it lacks are left out."""
        for name, tag in TAGS.items():
            value = getattr(report, name)
            if value is not None:
                self._writer.add_scalar(tag, value, report.step)

    def close(self) -> None:
        """Write what is left, and close the file."""
        self._writer.close()
