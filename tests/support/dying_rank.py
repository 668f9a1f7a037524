"""The command line, of which rank 1 is killed at the fifth step of a training run."""

import os
import signal
from typing import Any

import streamlm.training.trainer
from streamlm.cli.start import main

DIES_AT = 4  # steps done


def _die(trainer: Any, optimise: Any = streamlm.training.trainer.Trainer._optimise) -> Any:
    if trainer.ranks.rank == 1 and trainer.step == DIES_AT:
        os.kill(os.getpid(), signal.SIGKILL)
    return optimise(trainer)


if __name__ == "__main__":
    streamlm.training.trainer.Trainer._optimise = _die  # type: ignore[method-assign]
    main()
