"""The command for a borrowed GPU, tried where there is none: on the CPU, and on a device that is
pretended."""

import itertools
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_parts import decode, train
from benchmarks.gpu_parts import run as running
from benchmarks.gpu_parts.clock import clock_rate
from benchmarks.gpu_parts.run import Options, OutOfTime, Part, Run, at_most
from streamlm.checkpoints.checkpoint import load_checkpoint
from streamlm.training.config import TrainConfig
from tests.support.graphs import pretended_graphs
from tests.support.pretended_cuda import pretended_cuda

# The compiler's own imports warn, and so does its look at gradients.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
]
MEASURING = [name for name in gpu.PARTS if name != "tests"]


@pytest.fixture(autouse=True)
def called_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Result files record the command, which is pytest's here."""
    monkeypatch.setattr(sys, "argv", ["benchmark"])


def figures_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / running.RESULTS).read_text())["figures"]
    return found


def check_dry_run(folder: Path, *, device: str) -> None:
    """What every dry run finds."""
    figures = figures_of(folder)
    assert list(figures) == MEASURING
    assert not any("skipped" in part or "error" in part for part in figures.values())
    right = figures["right"]
    assert right["wrong"] == [] and right["largest"] < 1e-4
    assert right["head sketch, gradient"]["gradient"] < 1e-4
    assert right["session, greedy text is the same"] and "past" in right["session in a store"]
    decoded = figures["decode"]
    for rows in (1, 2):
        for dtype in ("float32", "bfloat16"):
            assert decoded[f"{rows} rows, {dtype}, kernel by kernel"]["tokens/s"] > 0
    assert figures["attention"]["as it is"]["difference"] < 0.02
    assert figures["train"]["steps"] > train.PROBED and figures["train"]["log"]
    assert 0 < figures["train"]["valid"]["bits_per_byte"] < 20
    assert figures["streaming"]["weights"] == "trained"
    assert sorted(path.name for path in folder.iterdir()) == [running.RESULTS, train.WEIGHTS]
    gpu.main(["join", str(folder / "weights"), "--out", str(folder / "joined")])
    assert load_checkpoint(folder / "joined", device="cpu").model.config.n_layers == 1


def run_dry(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu.main(["--parts", *MEASURING, "--train-seconds", "2", *arguments])
    assert ended.value.code == 0


def test_dry_run_on_the_cpu(tmp_path: Path) -> None:
    run_dry(["--device", "cpu", "--out", str(tmp_path)])
    check_dry_run(tmp_path, device="cpu")


def test_dry_run_on_a_pretended_device(tmp_path: Path) -> None:
    with pretended_cuda():
        run_dry(["--tiny", "--out", str(tmp_path)])
    check_dry_run(tmp_path, device="cuda")
    settings = json.loads((tmp_path / running.RESULTS).read_text())["settings"]
    assert settings["device"] == "cuda"


def options(out: Path, **changes: Any) -> Options:
    given: dict[str, Any] = {
        **{"device": "cpu", "tiny": True, "recipe": gpu.RECIPE, "packs": out, "out": out},
        **{"train_seconds": 1.0, "compile": False, "store": True},
    }
    return Options(**{**given, **changes})


def test_writing_is_measured_with_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Options, "has_cuda_build", True)
    monkeypatch.setattr(decode, "COMPILED", [])
    with pretended_cuda(), pretended_graphs() as log:
        doing = Run(options(tmp_path, device="cuda"), {"decode": 0}, until=float("inf"))
        doing.do("decode", decode.measure)
    found = figures_of(tmp_path)["decode"]
    assert doing.failed() == []
    for rows, dtype in itertools.product((1, 2), ("float32", "bfloat16")):
        assert found[f"{rows} rows, {dtype}, graph"]["difference"] == 0
        assert found[f"{rows} rows, {dtype}, commit"]["ms"] > 0
    assert log.count("capture") == 4


def test_a_part_that_fails_is_written_down_and_the_next_goes_on(tmp_path: Path) -> None:
    def fails(part: Part) -> None:
        part.note(known=1)
        raise RuntimeError("out of memory")

    def has_cases(part: Part) -> None:
        assert part.attempt("bad", lambda: 1 / 0) is None
        assert part.attempt("good", lambda: {"speed": 2.0}) == {"speed": 2.0}
        assert part.attempt("odd", lambda: {"difference": 0.5})
        part.disagrees("odd")

    doing = Run(options(tmp_path), {"one": 0, "two": 0}, until=float("inf"))
    doing.do("one", fails)
    assert list(figures_of(tmp_path)) == ["one"], "written before the next part begins"
    doing.do("two", has_cases)
    found = figures_of(tmp_path)
    assert found["one"]["error"] == "RuntimeError: out of memory" and found["one"]["known"] == 1
    assert "1 / 0" in found["two"]["bad"]["trace"] and found["two"]["good"]["speed"] == 2.0
    assert doing.failed() == ["one", "two: odd", "two: bad"]


def test_what_does_not_fit_into_the_time_is_left_out(tmp_path: Path) -> None:
    def too_long(part: Part) -> None:
        part.attempt("long", lambda: time.sleep(60), seconds=0)
        part.attempt("no time is left", lambda: 1)

    def never(part: Part) -> None:
        raise AssertionError

    doing = Run(options(tmp_path), {"one": 0, "two": 30}, until=time.monotonic() + 3)
    doing.do("one", too_long)
    doing.do("two", never)
    found = figures_of(tmp_path)
    assert found["one"]["long"]["error"].startswith("OutOfTime")
    assert (
        "left" in found["one"]["no time is left"]["skipped"] and "left" in found["two"]["skipped"]
    )


def test_spare_time_is_what_later_parts_do_not_need(tmp_path: Path) -> None:
    doing = Run(options(tmp_path), {"one": 0, "two": 5000}, until=time.monotonic() + 5010)

    def measure(part: Part) -> None:
        part.attempt("needed", lambda: 1)
        part.attempt("spare", lambda: 1, spare=True)

    doing.do("one", measure)
    assert doing.figures["one"]["spare"]["found"] == 1
    doing.expected["two"] = 5010
    doing.do("one", measure)
    assert "found" in doing.figures["one"]["needed"] and "skipped" in doing.figures["one"]["spare"]


def test_limits_may_stand_within_limits() -> None:
    with pytest.raises(OutOfTime, match=r"0\.5 s"), at_most(0.5):
        with pytest.raises(OutOfTime, match=r"0\.1 s"), at_most(0.1):
            time.sleep(60)
        time.sleep(60)


def test_training_goes_on_without_a_compiler_that_takes_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backend is one that hangs: it is in the same place on every machine when time is over."""

    def hangs(graph: object, inputs: object) -> None:
        time.sleep(60)

    # The compiler's modules are imported first: one that is imported halfway fails for good.
    torch.compile(torch.sin, backend="eager")(torch.ones(1))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=hangs))
    monkeypatch.setattr(train, "COMPILING", 2.0)
    doing = Run(options(tmp_path, compile=True), {"train": 0}, until=time.monotonic() + 600)
    doing.do("train", train.measure)
    found = figures_of(tmp_path)["train"]
    assert "error" not in found and "OutOfTime" in found["compilation"]["trace"]
    assert found["compiled"] is False and found["steps"] > train.PROBED
    assert found["valid"]["bits_per_byte"] > 0


def test_an_interruption_that_python_drops_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        def __del__(self) -> None:
            time.sleep(0.3)

    monkeypatch.setattr(running, "AGAIN", 0.1)
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    with pytest.raises(OutOfTime), at_most(0.1):
        Slow()
        time.sleep(60)


def test_training_that_fails_leaves_what_it_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learning_rate(self: object, step: int) -> float:
        if step == 6:
            raise torch.cuda.OutOfMemoryError("no memory")
        return 1e-3

    monkeypatch.setattr(train.ClockTrainer, "learning_rate", learning_rate)
    doing = Run(options(tmp_path, train_seconds=60.0), {"train": 0}, until=time.monotonic() + 600)
    doing.do("train", train.measure)
    found = figures_of(tmp_path)["train"]
    assert "no memory" in found["training"]["error"] and 2 < found["steps"] <= 6
    assert found["exported"]["pieces"] == 1 and found["valid"]["bits_per_byte"] > 0
    assert doing.failed() == ["train: training"]


def test_learning_rate_follows_the_clock() -> None:
    config = TrainConfig(learning_rate=1.0, min_learning_rate=0.1, warmup_steps=10)
    assert clock_rate(config, 4, 0.0) == pytest.approx(0.5)
    assert clock_rate(config, 9, 0.0) == 1.0
    rates = [clock_rate(config, 100, share / 10) for share in range(11)]
    assert rates == sorted(rates, reverse=True) and rates[5] == pytest.approx(0.55)
    assert clock_rate(config, 100, 1.0) == clock_rate(config, 100, 7.0) == pytest.approx(0.1)
