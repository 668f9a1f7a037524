"""How fast text is written: as it is, as a static step, as a CUDA graph, as a compiled graph."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.gpu_parts.run import Part, failure
from benchmarks.tools.parity import distance
from benchmarks.tools.static_step import StaticStep
from benchmarks.tools.timing import milliseconds
from benchmarks.tools.training import recipe_configs
from streamlm.models.build import build_model
from streamlm.models.transformer_xl import RelativeModel
from streamlm.runtime.stream import advance
from streamlm.state import State

BEGUN = 4  # tokens of the open segment when writing begins
# Rows and precisions that are compiled, in the order of their worth.
COMPILED = [(1, torch.bfloat16), (128, torch.bfloat16), (1, torch.float32)]
LIMITS = {torch.float32: 1e-3, torch.bfloat16: 0.05}  # differences that rounding explains
Step = Callable[[Tensor], Tensor]


def measure(part: Part) -> None:
    """How fast text is written: as it is, static, as a CUDA graph, compiled."""
    options = part.options
    _, config, _ = recipe_configs(options.recipe, tiny=options.tiny)
    cases: dict[tuple[int, torch.dtype], Case] = {}
    for rows in (1, 2) if options.tiny else (1, 16, 128):
        for dtype in (torch.float32, torch.bfloat16):
            torch.manual_seed(0)
            model = build_model(config).to(options.device, dtype).eval().requires_grad_(False)
            try:
                case = Case(part, cast(RelativeModel, model), rows)
                case.measure()
            except Exception as error:
                part.note(**{f"{rows} rows, {dtype}": failure(error)})
            else:
                cases[rows, dtype] = case
    for key in COMPILED:  # it takes long: only when all else is known
        if key in cases:
            cases[key].measure_compiled()


class Case:
    """One number of rows in one precision: the same tokens, from the same state, in every way."""

    def __init__(self, part: Part, model: RelativeModel, rows: int) -> None:
        self.part, self.model, self.rows = part, model, rows
        config, device = model.config, model.device
        dtype = str(model.output_bias.dtype).removeprefix("torch.")
        self.name = f"{rows} rows, {dtype}"
        self.cuda = part.options.has_cuda_build
        generator = torch.Generator().manual_seed(0)
        n = 3 * config.segment_len + BEGUN
        ids = torch.randint(config.vocab_size, (rows, n), generator=generator).to(device)
        self.n = 8 if part.options.tiny else 64
        self.tokens = ids[:, : self.n]
        self.token = ids[:, :1].clone()  # what a graph reads its token from
        _, self.state = advance(model, ids, model.init_state(rows))
        self.static = StaticStep(model, self.state)

    def measure(self) -> None:
        wanted, spent = self.as_it_is()
        self.part.attempt(f"{self.name}, as it is", lambda: self.speed(spent))
        self.attempt("static", lambda: self.timed(self.static.step, wanted))
        if not self.cuda:
            self.part.skip(f"{self.name}, graph", "this build of torch has no CUDA graphs")
            return
        self.attempt("graph", lambda: self.timed(self.captured(), wanted))
        self.attempt("commit", self.commits)

    def attempt(self, way: str, work: Callable[[], dict[str, float]], **options: Any) -> None:
        """A way, named where it does not compute what the model does."""
        name = f"{self.name}, {way}"
        found = self.part.attempt(name, work, **options)
        if found is not None and not found["difference"] < LIMITS[self.model.output_bias.dtype]:
            self.part.disagrees(name)

    def measure_compiled(self) -> None:
        """The step as one graph of the compiler, and that as a CUDA graph."""
        name, options = f"{self.name}, compiled", self.part.options
        if options.device == "cuda" and not self.cuda:
            self.part.skip(name, "this build of torch compiles for no CUDA device")
            return
        backend = "inductor" if self.cuda else "eager"  # on a CPU: only whether it is one graph

        def compiled() -> dict[str, float]:
            torch.compiler.reset()
            self.static.take(self.state)
            run = torch.compile(self.static.step, dynamic=False, fullgraph=True, backend=backend)
            return self.timed(self.captured(run) if self.cuda else run, self.as_it_is()[0])

        self.attempt("compiled", compiled, seconds=30, spare=True)

    def as_it_is(self) -> tuple[Tensor, float]:
        """Logits of every token, [n, B, V], and the milliseconds that reading them takes."""

        def logits() -> Tensor:
            state, found = self.state, []
            for i in range(self.n):
                hidden, state = advance(self.model, self.tokens[:, i : i + 1], state)
                found.append(self.model.logits(hidden))
            return torch.stack(found)

        repeats = 1 if self.part.options.tiny else 3
        return logits(), milliseconds(logits, str(self.model.device), repeats=repeats)

    def timed(self, step: Step, wanted: Tensor) -> dict[str, float]:
        """Speed of a step, and how far its logits are from `wanted`."""

        def run(keep: Callable[[Tensor], object] = lambda logits: None) -> None:
            self.static.take(self.state)
            for i in range(self.n):
                self.token.copy_(self.tokens[:, i : i + 1])
                keep(step(self.token))

        found: list[Tensor] = []
        run(lambda logits: found.append(logits.clone()))
        difference = distance(torch.stack(found), wanted)
        repeats = 1 if self.part.options.tiny else 5
        spent = milliseconds(run, str(self.model.device), repeats=repeats)
        return {"difference": difference, **self.speed(spent)}

    def speed(self, spent: float) -> dict[str, float]:
        """Args: spent: milliseconds of all n tokens."""
        each = spent / self.n
        return {
            "tokens/s": 1e3 * self.rows / each,
            "µs a step": 1e3 * each,
            "GB/s": self.static.bytes_read / each / 1e6,
        }

    def captured(self, run: Step | None = None) -> Step:
        """The step as a CUDA graph: it reads `token`, and its logits lie where they always do."""
        run = run or self.static.step
        self.static.take(self.state)
        warmed_up(lambda: run(self.token))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = run(self.token)

        def replayed(token: Tensor) -> Tensor:
            graph.replay()
            return logits

        return replayed

    def commits(self) -> dict[str, float]:
        """Closing a segment: as it is, and as a graph."""
        model, t = self.model, self.model.config.segment_len
        rest = self.tokens[:, :1].expand(-1, t - BEGUN)
        with torch.no_grad():
            _, full = model.hidden(rest.contiguous(), self.state)
            eager = milliseconds(lambda: model.commit(full), "cuda")
        self.static.take(full)
        wanted = model_commit(model, full)
        warmed_up(self.static.commit)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.static.commit()
        self.static.take(full)
        graph.replay()
        found = {"difference": distance(self.static.past, wanted.past)}
        return {**found, "as it is, ms": eager, "graph, ms": milliseconds(graph.replay, "cuda")}


@torch.no_grad()
def model_commit(model: RelativeModel, full: State) -> State:
    return model.commit(full)[0]


def warmed_up(work: Callable[[], object]) -> None:
    """Do work a few times on a stream of its own, as capturing it demands."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
