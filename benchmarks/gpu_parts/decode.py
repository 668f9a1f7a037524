"""How fast text is written: kernel by kernel, as a CUDA graph, as a graph of compiled kernels."""

from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu_parts.run import Part, failure
from benchmarks.tools.parity import distance
from benchmarks.tools.timing import milliseconds
from benchmarks.tools.training import recipe_configs
from streamlm.models.build import build_model
from streamlm.models.cache import Cache
from streamlm.models.captured import Captured
from streamlm.models.segmented import SegmentedModel
from streamlm.models.token_reading import captured_step, through_layers
from streamlm.runtime.stream import advance
from streamlm.state import State

NEVER = 1 << 30  # calls before capturing
BEGUN = 4  # tokens of the open segment when writing begins
# Rows and precisions that are compiled, in the order of their worth.
COMPILED = [(1, torch.bfloat16), (128, torch.bfloat16), (1, torch.float32)]
LIMITS = {torch.float32: 1e-3, torch.bfloat16: 0.05}  # differences that rounding explains


def measure(part: Part) -> None:
    """How fast text is written: kernel by kernel, as a CUDA graph, compiled."""
    options = part.options
    _, config, _ = recipe_configs(options.recipe, tiny=options.tiny)
    cases: dict[tuple[int, torch.dtype], Case] = {}
    for rows in (1, 2) if options.tiny else (1, 16, 64, 128):
        for dtype in (torch.float32, torch.bfloat16):
            torch.manual_seed(0)
            model = build_model(config).to(options.device, dtype).requires_grad_(False).freeze()
            assert isinstance(model, SegmentedModel)
            try:
                case = Case(part, model, rows)
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

    def __init__(self, part: Part, model: SegmentedModel, rows: int) -> None:
        self.part, self.model, self.rows = part, model, rows
        config, device = model.config, model.device
        self.dtype = next(model.parameters()).dtype
        self.name = f"{rows} rows, {str(self.dtype).removeprefix('torch.')}"
        self.graphs = part.options.has_cuda_build
        generator = torch.Generator().manual_seed(0)
        n = 3 * config.segment_len + BEGUN
        ids = torch.randint(config.vocab_size, (rows, n), generator=generator).to(device)
        self.n = 8 if part.options.tiny else 64
        self.tokens = ids[:, : self.n + 1]
        self.cache = Cache()  # follows `state`; every timed call works on a copy
        _, self.state = advance(model, ids, model.init_state(rows), self.cache)

    def measure(self) -> None:
        step = partial(captured_step, self.model, after=NEVER)
        wanted, spent = self.written(step())
        self.part.attempt(f"{self.name}, kernel by kernel", lambda: self.speed(spent))
        if not self.graphs:
            self.part.skip(f"{self.name}, graph", "this build of torch has no CUDA graphs")
            return
        self.attempt("graph", captured_step(self.model, after=0), wanted)
        self.part.attempt(f"{self.name}, commit", self.commits)

    def measure_compiled(self) -> None:
        """Compiled kernels, as a CUDA graph."""
        if not self.graphs:
            self.part.skip(f"{self.name}, compiled", "this build of torch has no CUDA graphs")
            return
        torch.compiler.reset()
        layers = partial(through_layers, self.model)
        work = torch.compile(layers, dynamic=False, fullgraph=True)
        wanted, _ = self.written(captured_step(self.model, after=NEVER))
        step = Captured(work, self.model.frozen, after=0)
        self.attempt("compiled", step, wanted, seconds=30, spare=True)

    def attempt(self, way: str, step: Captured, wanted: Tensor, **options: float) -> None:
        """A way, named where it does not compute what the first one does."""
        name = f"{self.name}, {way}"

        def compared() -> dict[str, float]:
            found, spent = self.written(step)
            return {"difference": distance(found, wanted), **self.speed(spent)}

        measured = self.part.attempt(name, compared, **options)  # type: ignore[arg-type]
        if measured is not None and not measured["difference"] < LIMITS[self.dtype]:
            self.part.disagrees(name)

    def written(self, step: Captured) -> tuple[Tensor, float]:
        """Logits of every token, [n, B, V], and the milliseconds that reading them takes.

        A token is read before, which compiles and captures; it is not timed.
        """
        cache, state, found = self.cache.copy(), self.state, []
        cache.step = step
        _, state = advance(self.model, self.tokens[:, :1], state, cache)

        def logits() -> None:
            now = state
            found.clear()
            for i in range(1, self.n + 1):
                hidden, now = advance(self.model, self.tokens[:, i : i + 1], now, cache)
                found.append(self.model.logits(hidden))

        repeats = 1 if self.part.options.tiny else 3
        spent = milliseconds(logits, str(self.model.device), repeats=repeats)
        return torch.stack(found), spent

    def speed(self, spent: float) -> dict[str, float]:
        """Args: spent: milliseconds of all n tokens."""
        each = spent / self.n
        return {
            "tokens/s": 1e3 * self.rows / each,
            "µs a step": 1e3 * each,
            "GB/s": self.bytes_read / each / 1e6,
        }

    @property
    def bytes_read(self) -> int:
        """Bytes of weights, position keys, keys and values that one step reads."""
        positions = sum(each.nbytes for pair in self.model.derived() for each in pair)
        weights = sum(each.nbytes for each in self.model.parameters())
        return positions + weights + self.cache.nbytes

    def commits(self) -> dict[str, float]:
        """Milliseconds of closing a segment, whose keys and values stay where they are."""
        model, t = self.model, self.model.config.segment_len
        rest = self.tokens[:, :1].expand(-1, t - BEGUN).contiguous()
        read, cache = self.cache.copy(), Cache()
        with torch.no_grad():
            _, full = model.hidden(rest, self.state, read)

        def begin() -> None:
            nonlocal cache
            cache = read.copy()
            cache.step = captured_step(model)

        @torch.no_grad()
        def commit() -> State:
            return model.commit(full, cache)[0]

        return {"ms": milliseconds(commit, str(model.device), before=begin)}
