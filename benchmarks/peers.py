"""Speed beside other implementations, and beside the least that a processor must do.

    make .venv-parity                               # has them: the versions of `make parity`
    .venv-parity/bin/python -m benchmarks.peers     # twenty minutes of one core
    .venv-parity/bin/python -m benchmarks.peers --parts writing --rounds 3     # a quick look

All figures are ratios of processor time, measured in turns on one thread: 8 layers of 512, segments
of 128 tokens, 512 slots of memory, float32, one row, with the same random text and full memory.
Our model reads and writes with 8-bit weights and in bfloat16 too, where the processor has products
of them.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.tools.timing import ratio, side_by_side
from streamlm.config import ModelConfig
from streamlm.lab.results import write_results
from streamlm.models.cache import Cache
from streamlm.models.layers.packed import has_int8_kernels
from streamlm.models.precision import has_bfloat16_products, set_precision
from streamlm.models.transformer_xl import TransformerXL
from streamlm.runtime.stream import advance, prefill, score

LAYERS, WIDTH, HEADS, INNER, VOCABULARY = 8, 512, 8, 2048, 8192
SEGMENT, MEMORY, COMPRESSED, RATE = 128, 512, 512, 4
SEGMENTS, WRITTEN = 4, 32  # of one turn: segments that are read, tokens that are written
ROWS = 4  # in training

Turn = Callable[[], float]  # does the work, and returns its seconds of processor time
GOALS = {
    "reading, scored, to Hugging Face's": 2.5,
    "reading to Hugging Face's": 2.5,
    "reading, scored, to products alone": 0.85,
    "reading to products alone": 0.85,
    "reading with compression, scored, to lucidrains'": 2.0,
    "training to lucidrains'": 1.5,
    "writing to Hugging Face's": 10.0,
    "writing to weights read once": 0.85,
}


def timed(work: Callable[[], object]) -> float:
    """Seconds of processor time."""
    began = time.process_time()
    work()
    return time.process_time() - began


def text(n: int) -> Tensor:
    """[1, n] random tokens."""
    return rows(n)[:1]


def rows(n: int) -> Tensor:
    """[ROWS, n] random tokens."""
    return torch.randint(VOCABULARY, (ROWS, n), generator=torch.Generator().manual_seed(1))


def ours(*, compressed: int = 0, precision: str = "float32") -> TransformerXL:
    """A frozen Transformer-XL with random weights."""
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=VOCABULARY,
        n_layers=LAYERS,
        d_model=WIDTH,
        n_heads=HEADS,
        head_dim=WIDTH // HEADS,
        d_ff=INNER,
        segment_len=SEGMENT,
        memory_len=MEMORY,
        compressed_len=compressed,
        compression_rate=RATE if compressed else 1,
        compression="conv",
        compression_loss="attention-reconstruction" if compressed else "none",
    )
    model = TransformerXL(config).freeze()
    set_precision(model, precision)
    return model


class Ours:
    """Our model in the middle of a stream whose memory is full."""

    def __init__(self, *, compressed: int = 0, precision: str = "float32") -> None:
        self.model = ours(compressed=compressed, precision=precision)
        self.cache = Cache()
        past = text(MEMORY + RATE * compressed + SEGMENT)
        self.state = prefill(self.model, past, self.model.init_state(1), self.cache)
        self.tokens = text(SEGMENTS * SEGMENT + 1)

    def read(self) -> float:
        """Read some segments."""
        return timed(self._read)

    def score(self) -> float:
        """Read some segments and score them."""
        return timed(self._score)

    def write(self) -> float:
        """Write some tokens, the likeliest each time."""
        return timed(self._write)

    def _read(self) -> None:
        self.state = prefill(self.model, self.tokens[:, 1:], self.state, self.cache)

    def _score(self) -> None:
        read, wanted = self.tokens[:, :-1], self.tokens[:, 1:]
        _, self.state = score(self.model, read, wanted, self.state, self.cache)

    def _write(self) -> None:
        token = self.tokens[:, :1]
        for _ in range(WRITTEN):
            hidden, self.state = advance(self.model, token, self.state, self.cache)
            token = self.model.logits(hidden).argmax(dim=1, keepdim=True)


class OursTraining:
    """Our model while it is trained on streams whose memory is full."""

    def __init__(self) -> None:
        self.model = ours(compressed=COMPRESSED)
        past = rows(MEMORY + RATE * COMPRESSED)
        self.state = prefill(self.model, past, self.model.init_state(ROWS))
        self.model.train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4, fused=True)
        self.tokens = rows(SEGMENT + 1)

    def step(self) -> float:
        """Read a segment of every row, with the loss of its compression, and update the weights."""
        return timed(self._step)

    def _step(self) -> None:
        model = self.model
        hidden, state = model.hidden(self.tokens[:, :-1], self.state)
        loss = -model.log_prob(hidden, self.tokens[:, 1:]).mean()
        self.state, eviction = model.commit(state)
        assert eviction is not None
        self.optimizer.zero_grad()
        (loss + model.auxiliary_loss(eviction)[0]).backward()
        self.optimizer.step()


class HuggingFace:
    """`TransfoXLLMHeadModel` of transformers 4.35.2, its memory full."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from transformers import TransfoXLConfig, TransfoXLLMHeadModel
        torch.manual_seed(0)
        config = TransfoXLConfig(
            vocab_size=VOCABULARY,
            cutoffs=[],
            div_val=1,
            d_model=WIDTH,
            d_embed=WIDTH,
            n_head=HEADS,
            d_head=WIDTH // HEADS,
            d_inner=INNER,
            n_layer=LAYERS,
            mem_len=MEMORY,
            clamp_len=-1,
            same_length=False,
        )
        self.model = TransfoXLLMHeadModel(config).eval()
        self.tokens = text(SEGMENTS * SEGMENT + 1)
        self.mems = [torch.randn(MEMORY, 1, WIDTH) for _ in range(LAYERS)]

    def read(self) -> float:
        """Read some segments, without the output layer."""
        return timed(lambda: self._read(self.model.transformer))

    def score(self) -> float:
        """Read some segments, with the losses of the next tokens."""
        return timed(lambda: self._read(self.model, scored=True))

    def write(self) -> float:
        """Write some tokens, the likeliest each time."""
        return timed(self._write)

    @torch.no_grad()
    def _read(self, model: Any, *, scored: bool = False) -> None:
        mems = self.mems
        for piece in self.tokens[:, :-1].split(SEGMENT, dim=1):
            labels = {"labels": piece} if scored else {}
            mems = model(piece, mems=mems, **labels).mems

    @torch.no_grad()
    def _write(self) -> None:
        token, mems = self.tokens[:, :1], self.mems
        for _ in range(WRITTEN):
            found = self.model(token, mems=mems)
            token, mems = found.logits[:, -1].argmax(dim=1, keepdim=True), found.mems


class Lucidrains:
    """`CompressiveTransformer` of compressive-transformer-pytorch 0.4.0, its memory full."""

    def __init__(self) -> None:
        from compressive_transformer_pytorch import CompressiveTransformer

        torch.manual_seed(0)
        self.model = CompressiveTransformer(
            num_tokens=VOCABULARY,
            dim=WIDTH,
            depth=LAYERS,
            heads=HEADS,
            seq_len=SEGMENT,
            mem_len=MEMORY,
            cmem_len=COMPRESSED,
            cmem_ratio=RATE,
            gru_gated_residual=False,  # ours has plain ones
        ).eval()
        self.tokens = text(SEGMENTS * SEGMENT)
        shape = (LAYERS, 1, MEMORY, WIDTH), (LAYERS, 1, COMPRESSED, WIDTH)
        self.memories: Any = tuple(torch.randn(*each) for each in shape)

        self.training_text = rows(SEGMENT + 1)
        shape = (LAYERS, ROWS, MEMORY, WIDTH), (LAYERS, ROWS, COMPRESSED, WIDTH)
        self.trained: Any = tuple(torch.randn(*each) for each in shape)

    def read(self) -> float:
        """Read some segments, with the logits, which it always computes."""
        return timed(self._read)

    def train(self) -> "Lucidrains":
        """To take steps of training."""
        self.model.train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4, fused=True)
        return self

    def step(self) -> float:
        """Read a segment of every row, with the loss of its compression, and update the weights."""
        return timed(self._step)

    def _step(self) -> None:
        found, self.trained, auxiliary = self.model(
            self.training_text[:, :-1], memories=self.trained
        )
        loss = F.cross_entropy(found.transpose(1, 2), self.training_text[:, 1:])
        self.optimizer.zero_grad()
        (loss + auxiliary).backward()
        self.optimizer.step()
        for parameter in self.model.parameters():  # its auxiliary loss freezes some for good
            parameter.requires_grad_()

    @torch.no_grad()
    def _read(self) -> None:
        memories = self.memories
        for piece in self.tokens.split(SEGMENT, dim=1):
            _, memories, _ = self.model(piece, memories=memories)


def products(*, scored: bool) -> Turn:
    """The matrix products of reading, on tensors that are there."""
    n_keys, width = MEMORY + SEGMENT, WIDTH // HEADS
    x, inner = torch.randn(SEGMENT, WIDTH), torch.randn(SEGMENT, INNER)
    queries = torch.randn(HEADS, SEGMENT, width)
    keys, shares = torch.randn(HEADS, width, n_keys), torch.rand(HEADS, SEGMENT, n_keys)
    positions, values = torch.randn(HEADS, width, n_keys + 1), torch.randn(HEADS, n_keys, width)
    sizes = {"q, k, v": 3 * WIDTH, "output": WIDTH, "inner": INNER}
    weights = {name: torch.randn(n, WIDTH) for name, n in sizes.items()}
    outer, vocabulary = torch.randn(WIDTH, INNER), torch.randn(VOCABULARY, WIDTH)

    @torch.no_grad()
    def work() -> None:
        for _ in range(SEGMENTS):
            for _ in range(LAYERS):
                for weight in weights.values():
                    F.linear(x, weight)
                F.linear(inner, outer)
                torch.bmm(queries, keys)
                torch.bmm(queries, positions)
                torch.bmm(shares, values)
            if scored:
                F.linear(x, vocabulary)

    return lambda: timed(work)


def weights_once() -> Turn:
    """Each weight of our model multiplied by one token, as often as tokens are written."""
    model = ours()
    position = {id(layer.attention.position.weight) for layer in model.layers}  # used once, ever
    matrices = [w for w in model.parameters() if w.ndim == 2 and id(w) not in position]
    tokens = [torch.randn(1, matrix.shape[1]) for matrix in matrices]

    @torch.no_grad()
    def work() -> None:
        for _ in range(WRITTEN):
            for token, matrix in zip(tokens, matrices, strict=True):
                F.linear(token, matrix)

    return lambda: timed(work)


def precisions() -> dict[str, str]:
    """Of our model on this processor, and how the names of their ratios end."""
    found = {"float32": ""}
    if has_int8_kernels():
        found["int8"] = ", 8-bit weights"
    if has_bfloat16_products():
        found["bfloat16"] = ", bfloat16"
    return found


def pairs(part: str) -> dict[str, tuple[Turn, Turn]]:
    """What is measured in turns, ours first, by the name of the ratio."""
    if part == "training":
        return {"training to lucidrains'": (OursTraining().step, Lucidrains().train().step)}
    found: dict[str, tuple[Turn, Turn]] = {}
    theirs: Any = Lucidrains() if part == "compression" else HuggingFace()
    for precision, ending in precisions().items():
        mine = Ours(compressed=COMPRESSED if part == "compression" else 0, precision=precision)
        if part == "compression":
            some = {
                "reading with compression, scored, to lucidrains'": (mine.score, theirs.read),
            }
        elif part == "writing":
            some = {
                "writing to Hugging Face's": (mine.write, theirs.write),
                "writing to weights read once": (mine.write, weights_once()),
            }
        else:
            some = {
                "reading, scored, to Hugging Face's": (mine.score, theirs.score),
                "reading to Hugging Face's": (mine.read, theirs.read),
                "reading, scored, to products alone": (mine.score, products(scored=True)),
                "reading to products alone": (mine.read, products(scored=False)),
            }
        found |= {name + ending: turns for name, turns in some.items()}
    return found


# Tokens of one turn.
PARTS = {
    "reading": SEGMENTS * SEGMENT,
    "compression": SEGMENTS * SEGMENT,
    "training": ROWS * SEGMENT,
    "writing": WRITTEN,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=15, help="turns of each pair")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/peers.json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    if options.out.exists():
        figures = json.loads(options.out.read_text(encoding="utf-8"))["figures"]
    for part in options.parts:
        for name, (mine, theirs) in pairs(part).items():
            spent, floor = side_by_side(mine, theirs, repeats=options.rounds)
            found = ratio(floor, spent)
            plain = name.removesuffix(", 8-bit weights").removesuffix(", bfloat16")
            found["goal"] = goal = GOALS[plain]
            found["tokens_per_cpu_second"] = PARTS[part] / sorted(spent)[len(spent) // 2]
            found["beside"] = PARTS[part] / sorted(floor)[len(floor) // 2]
            figures[name] = found
            print(
                f"{name}: {found['median']:.2f} ({found['low']:.2f} to {found['high']:.2f}), "
                f"goal {goal}; {found['tokens_per_cpu_second']:.0f} tokens/s "
                f"beside {found['beside']:.0f}",
                flush=True,
            )
            write_results(options.out, settings={"rounds": options.rounds}, figures=figures)


if __name__ == "__main__":
    main()
