"""What reading, generating and training may cost on a CUDA device, counted without one.

`python -m tests.device.budgets` measures again and prints the table of `docs/cuda.md`.
"""

import tempfile
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamlm.models.base import Model
from streamlm.models.cache import Cache
from streamlm.runtime.stream import advance
from streamlm.sessions.session import Session
from streamlm.state import State
from tests.device.cases import BOOK, SENTENCE, VARIANTS, loaded, trainer_of
from tests.support.pretended_cuda import Log, counting, pretended_cuda

SEGMENTS, STEPS = 2, 2  # over which reading and training are counted


@dataclass(frozen=True)
class Ceiling:
    """Kernels that a variant may launch.

    Attributes:
        token: per generated token; ragged: per token read by rows in different phases.
        segment: per segment read; step: per training step.
    """

    token: int
    ragged: int
    segment: int
    step: int


# About a tenth above the counts with PyTorch 2.13.0.
CEILINGS = {
    "relative": Ceiling(77, 82, 104, 515),
    "most-used": Ceiling(92, 100, 154, 450),
    "select": Ceiling(80, 88, 146, 610),
    "adaptive": Ceiling(119, 110, 131, 505),
    "recurrent": Ceiling(75, 222, 95, 340),
    "full": Ceiling(71, 268, 83, 300),
    "linformer": Ceiling(75, 265, 96, 465),
    "informer": Ceiling(178, 495, 218, 640),
    "sinks": Ceiling(70, 250, 88, 410),
    "sketch": Ceiling(165, 480, 238, 735),
    "llama": Ceiling(126, 135, 244, 867),
    "llama-most-used": Ceiling(142, 148, 246, 581),
}


@dataclass(frozen=True)
class Counted:
    """Logs of a variant. A segment is closed wherever one ends.

    Attributes:
        call: reading one token within a segment; read: reading SEGMENTS whole segments.
        ragged: reading a segment's length of tokens one by one, by rows in different phases;
            ragged_read: reading as many tokens at once.
        fed: one block fed to a session; scored: one fed and scored.
        written: generating a whole segment.
        n_tokens: of a segment.
        trained: STEPS steps in the middle of a run.
    """

    call: Log
    read: Log
    ragged: Log
    ragged_read: Log
    fed: Log
    scored: Log
    written: Log
    n_tokens: int
    trained: Log

    @property
    def kernels(self) -> Ceiling:
        """Kernels per token, segment and step, rounded up."""
        return Ceiling(
            token=-(-self.written.n_kernels // self.n_tokens),
            ragged=-(-self.ragged.n_kernels // self.n_tokens),
            segment=-(-self.read.n_kernels // SEGMENTS),
            step=-(-self.trained.n_kernels // STEPS),
        )


def count(variant: str, folder: Path) -> Counted:
    """Read, generate and train with a small model on the pretended device."""
    with pretended_cuda():
        checkpoint = loaded(folder, variant, "cuda")
        model, t = checkpoint.model, checkpoint.model.config.segment_len
        assert model.frozen is not None  # else no cache is kept from call to call
        ids, cache = torch.randint(model.config.vocab_size, (1, 8 * t)).to("cuda"), Cache()
        _, state = advance(model, ids, model.init_state(1), cache)  # fills the memory
        with counting() as read:
            _, state = advance(model, ids[:, : SEGMENTS * t], state, cache)
        with counting() as call:
            advance(model, ids[:, :1], state, cache)
        ragged, ragged_read = count_ragged(model, ids)

        session = Session(checkpoint)
        session.feed(BOOK)
        with counting() as fed:
            session.feed(SENTENCE * 4)
        with counting() as scored:
            session.feed(SENTENCE * 4, score=True)
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
    return Counted(call, read, ragged, ragged_read, fed, scored, written, t, trained)


def count_ragged(model: Model, ids: Tensor) -> tuple[Log, Log]:
    """Read a segment's length with two rows in different phases, token by token and at once.

    Args:
        ids: [1, n], n at least six segments.
    """
    t, cache = model.config.segment_len, Cache()
    alone = [advance(model, ids[:, :n], model.init_state(1))[1] for n in (3 * t - 7, 6 * t + 4)]
    state, both = State.stack(alone), ids.expand(2, -1)
    _, state = advance(model, both[:, :1], state, cache)  # derives what the cache holds
    with counting() as tokens:
        for i in range(t):
            _, state = advance(model, both[:, i : i + 1], state, cache)
    with counting() as whole:
        advance(model, both[:, :t], state, cache)
    return tokens, whole


def table() -> str:
    """The tables of `docs/cuda.md`, measured again."""
    waits = [
        "| model | segment read | token, rows in different phases | block fed | block scored "
        "| token generated | training step |",
        "|---|---|---|---|---|---|---|",
    ]
    kernels = [
        "| model | token generated | token, rows in different phases | segment read "
        "| training step |",
        "|---|---|---|---|---|",
    ]
    for variant in VARIANTS:
        with tempfile.TemporaryDirectory() as folder:
            found = count(variant, Path(folder))
        n = (
            found.read.n_waits / SEGMENTS,
            found.ragged.n_waits / found.n_tokens,
            found.fed.n_waits,
            found.scored.n_waits,
            found.written.n_waits / found.n_tokens,
            found.trained.n_waits / STEPS,
        )
        waits.append(f"| `{variant}` | {' | '.join(f'{each:g}' for each in n)} |")
        counted, most = astuple(found.kernels), astuple(CEILINGS[variant])
        cells = (f"{one} of {other}" for one, other in zip(counted, most, strict=True))
        kernels.append(f"| `{variant}` | {' | '.join(cells)} |")
    return "\n".join([*waits, "", *kernels])


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table())
