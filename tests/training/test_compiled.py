"""Compiled training computes what eager training does, and compiles once."""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from streamlm.training import losses
from tests.support.training import MakeTrainer


def assert_compiles(make: MakeTrainer, *, precision: str = "float32") -> None:
    options = {"n_layers": 1, "batch_size": 2, "steps": 4, "precision": precision}
    eager = [(step.loss, step.compression_loss) for step in make("eager", **options).run()]
    compiled = make("compiled", compile=True, **options)
    near = 1e-4 if precision == "float32" else 1e-2
    for step, wanted in zip(compiled.run(), eager, strict=True):
        assert (step.loss, step.compression_loss) == pytest.approx(wanted, rel=near)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # compiled once


@pytest.fixture
def fresh_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Code that another process compiled at the same time, or for other instructions, may not run.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore")  # of torch, about itself
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_segment_is_one_graph(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, fresh_compiler: None, precision: str
) -> None:
    """Also where the loss would otherwise be in chunks."""
    whole = partial(torch.compile, fullgraph=True, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", whole)
    monkeypatch.setattr(losses, "CHUNK_BYTES", 1)
    assert_compiles(make, precision=precision)


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="torch.compile needs a compiler"
)
@pytest.mark.filterwarnings("ignore")  # of torch, about itself
def test_compiled_training_computes_the_same(make: MakeTrainer, fresh_compiler: None) -> None:
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    if not pick_vec_isa():
        pytest.skip("without SIMD, PyTorch 2.13 generates code that does not compile")
    assert_compiles(make)
