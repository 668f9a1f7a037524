"""TrainConfig: how a model is trained; frozen, checked, JSON."""

from dataclasses import dataclass

from streamlm.config import Config, require


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """How a model is trained.

    Attributes:
        steps: optimiser steps of the whole run.
        batch_size: rows, each with its own documents, read segment by segment.
        accumulate: groups of `batch_size` rows whose gradients are added before a step, equal to
            one group of all rows; on several ranks, of each.
        rows_at_once: rows of a group that are read at once; the gradients of its parts are added,
            and the loss is the same. 0: all. -1: on CUDA, as many as fit into 90 % of the memory,
            tried before the first step; on a CPU, all.
        unroll: consecutive segments per optimiser step; "bptt" needs at least 2.
        learning_rate, min_learning_rate, warmup_steps: linear warm-up, then cosine decay.
        weight_decay: of AdamW, for matrices only: biases and gains of any shape do not decay.
        beta1, beta2: moment decay rates of AdamW.
        clip: the largest gradient norm.
        seed: of the initial weights, of dropout and of the order of documents.
        precision: "float32" or "bfloat16" (autocast; weights stay float32).
        only: "compression" trains the compressors alone, with the other weights frozen; "" all.
        compile: run the model through torch.compile.
        shard: on several ranks, "" keeps all weights on each; "step" divides weights, gradients
            and moments among them, and gathers all weights for a step; "layers" gathers those of
            one layer at a time.
        checkpoint_steps, eval_steps, log_steps: steps between saves, evaluations and log lines.
        eval_tokens: validation tokens read by each evaluation.
    """

    steps: int = 10_000
    batch_size: int = 16
    accumulate: int = 1
    rows_at_once: int = 0
    unroll: int = 1
    learning_rate: float = 1e-3
    min_learning_rate: float = 1e-5
    warmup_steps: int = 200
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.98
    clip: float = 1.0
    seed: int = 1
    precision: str = "float32"
    only: str = ""
    compile: bool = False
    shard: str = ""
    checkpoint_steps: int = 500
    eval_steps: int = 500
    log_steps: int = 20
    eval_tokens: int = 100_000

    def __post_init__(self) -> None:
        self._check_types()
        for name in (
            "steps",
            "batch_size",
            "accumulate",
            "unroll",
            "checkpoint_steps",
            "eval_steps",
            "log_steps",
            "eval_tokens",
        ):
            value = getattr(self, name)
            require(value >= 1, name, value, "an integer of at least 1")
        allowed = "a number of rows, 0 for all, or -1 for as many as fit into the device's memory"
        require(self.rows_at_once >= -1, "rows_at_once", self.rows_at_once, allowed)
        require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "at least 0")
        for name in ("learning_rate", "clip"):
            value = getattr(self, name)
            require(value > 0, name, value, "a number above 0")
        rate = self.min_learning_rate
        allowed = f"a number from 0 to learning_rate = {self.learning_rate}"
        require(0 <= rate <= self.learning_rate, "min_learning_rate", rate, allowed)
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "at least 0")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, name, value, "a number in [0, 1)")
        require(self.only in ("", "compression"), "only", self.only, "'' or 'compression'")
        require(self.shard in ("", "step", "layers"), "shard", self.shard, "'', 'step' or 'layers'")
        require(
            self.precision in ("float32", "bfloat16"),
            "precision",
            self.precision,
            "'float32' or 'bfloat16'",
        )
