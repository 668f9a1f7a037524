"""The command of the harness, which then knows the model `streamlm`."""

import lm_eval.models  # noqa: F401 (the harness looks for its own only where there are none yet)
from lm_eval.__main__ import cli_evaluate

import lm_eval_streamlm  # noqa: F401


def main() -> None:
    """As `lm_eval`."""
    cli_evaluate()


if __name__ == "__main__":
    main()
