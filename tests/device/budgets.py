"""What reading, generating and training may cost on a CUDA device, counted without one.

`python -m tests.device.budgets` measures again and prints the table of `docs/cuda.md`.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from streamlm.runtime.stream import advance
from streamlm.sessions.session import Session
from tests.device.cases import BOOK, SENTENCE, VARIANTS, loaded, trainer_of
from tests.support.pretended_cuda import Log, counting, pretended_cuda

SEGMENTS, STEPS = 2, 2  # over which reading and training are counted


@dataclass(frozen=True)
class Ceiling:
    """Kernels that a variant may launch per generated token, segment read and training step."""

    token: int
    segment: int
    step: int


# About a tenth above the counts with PyTorch 2.13.0.
CEILINGS = {
    "relative": Ceiling(66, 110, 470),
    "most-used": Ceiling(82, 160, 410),
    "select": Ceiling(69, 150, 610),
    "adaptive": Ceiling(108, 137, 505),
    "recurrent": Ceiling(77, 104, 345),
    "full": Ceiling(85, 90, 415),
    "linformer": Ceiling(87, 106, 560),
    "informer": Ceiling(190, 230, 660),
    "sinks": Ceiling(84, 106, 500),
    "sketch": Ceiling(176, 252, 840),
}


@dataclass(frozen=True)
class Counted:
    """Logs of a variant.

    Attributes:
        call: reading one token within a segment; read: reading SEGMENTS whole segments.
        fed: one block fed to a session.
        written: generating a whole segment; n_tokens: its tokens.
        trained: STEPS steps in the middle of a run.
    """

    call: Log
    read: Log
    fed: Log
    written: Log
    n_tokens: int
    trained: Log

    @property
    def kernels(self) -> Ceiling:
        """Kernels per token, segment and step, rounded up."""
        return Ceiling(
            token=-(-self.written.n_kernels // self.n_tokens),
            segment=-(-self.read.n_kernels // SEGMENTS),
            step=-(-self.trained.n_kernels // STEPS),
        )


def count(variant: str, folder: Path) -> Counted:
    """Read, write and train a small model on the pretended device."""
    with pretended_cuda():
        checkpoint = loaded(folder, variant, "cuda")
        model, t = checkpoint.model, checkpoint.model.config.segment_len
        ids = torch.randint(model.config.vocab_size, (1, 8 * t)).to("cuda")
        _, state = advance(model, ids, model.init_state(1))  # fills the memory
        with counting() as read:
            _, state = advance(model, ids[:, : SEGMENTS * t], state)
        with counting() as call:
            advance(model, ids[:, :1], state)

        session = Session(checkpoint)
        session.feed(BOOK)
        with counting() as fed:
            session.feed(SENTENCE * 4)
        list(session.generate(max_tokens=t - session.position % t, seed=1))
        with counting() as written:
            list(session.generate(max_tokens=t, seed=1))

        trainer = trainer_of(folder / "run", "cuda", variant, checkpoint_steps=99, eval_steps=99)
        run: Any = trainer.run()
        next(run)
        next(run)
        with counting() as trained:
            for _ in range(STEPS):
                next(run)
        run.close()
    return Counted(call, read, fed, written, t, trained)


def table() -> str:
    """The table of `docs/cuda.md`, measured again."""
    lines = [
        "| model | syncs: segment read | block fed | token generated | training step "
        "| kernels: token generated | segment read | training step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for variant in VARIANTS:
        with tempfile.TemporaryDirectory() as folder:
            found = count(variant, Path(folder))
        kernels, most = found.kernels, CEILINGS[variant]
        waits = (
            found.read.n_waits / SEGMENTS,
            found.fed.n_waits,
            found.written.n_waits / found.n_tokens,
            found.trained.n_waits / STEPS,
        )
        cells = [f"`{variant}`", *(f"{n:g}" for n in waits)]
        for name in ("token", "segment", "step"):
            cells.append(f"{getattr(kernels, name)} of {getattr(most, name)}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table())
