"""Several ranks train as one does that accumulates their groups, and resume each other's runs."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from streamlm.training.config import TrainConfig
from streamlm.training.parts import check_shard
from streamlm.training.ranks import Ranks
from tests.support.command_line import CommandLine, write_recipe
from tests.support.ranks import CASES, PARTS, SHARDED, reports, train, trainer
from tests.support.torchrun import torchrun


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks have trained, in `ranks`; `one` has a run that one rank began."""
    folder = tmp_path_factory.mktemp("runs")
    reports(trainer(folder / "one" / "left", accumulate=2), 5)
    (done,) = torchrun("tests.support.ranks", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def reported(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "ranks" / "reports.json").read_text())
    return found


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one_that_accumulates(
    folder: Path, reported: dict[str, Any], tmp_path: Path, case: str
) -> None:
    """To the bit: the same operations in the same shapes, and one sum of two gradients."""
    assert train(tmp_path, accumulate=2, **CASES[case]) == reported[case]
    assert weights(tmp_path) == weights(folder / "ranks" / case)


@pytest.mark.parametrize("case", [*SHARDED, *PARTS])
def test_divided_weights_and_rows_learn_the_same(
    folder: Path, reported: dict[str, Any], tmp_path: Path, case: str
) -> None:
    """Not to the bit: the norm of a gradient is added up from its parts."""
    options = {**SHARDED, **PARTS}[case] | {"shard": "", "rows_at_once": 0}
    wanted = train(tmp_path, accumulate=2, **options)
    assert [step["tokens"] for step in reported[case]] == [step["tokens"] for step in wanted]
    near = 0.05 if "precision" in options else 1e-3
    for name in ("loss", "gradient_norm", "compression_loss"):
        found = [step[name] for step in reported[case]]
        assert found == pytest.approx([step[name] for step in wanted], rel=near), name
    found, ours = (
        load_file(f / "model" / "model.safetensors") for f in (folder / "ranks" / case, tmp_path)
    )
    assert found.keys() == ours.keys()
    for name, tensor in ours.items():
        assert found[name].shape == tensor.shape
        assert float((found[name] - tensor).abs().max()) < 2e-2, name  # learning_rate is 1e-2


def test_ranks_resume_exactly(folder: Path, reported: dict[str, Any]) -> None:
    assert reported["stopped"] == reported["dropout"]
    assert weights(folder / "ranks" / "stopped") == weights(folder / "ranks" / "dropout")


def test_divided_weights_resume_exactly(folder: Path, reported: dict[str, Any]) -> None:
    assert reported["divided"] == reported["layers"][5:]
    assert weights(folder / "ranks" / "divided") == weights(folder / "ranks" / "layers")


def test_one_rank_goes_on_with_a_run_of_two(folder: Path, tmp_path: Path) -> None:
    """The recipe is the same; the rank takes both groups."""
    alone = trainer(folder / "ranks" / "left")
    alone.resume()
    assert len(alone.states) == 2
    assert reports(alone) == train(tmp_path, accumulate=2)[5:]
    assert weights(folder / "ranks" / "left") == weights(tmp_path)


def test_two_ranks_go_on_with_a_run_of_one(
    folder: Path, reported: dict[str, Any], tmp_path: Path
) -> None:
    assert reported["taken over"] == train(tmp_path, accumulate=2)[5:]
    assert weights(folder / "one" / "left") == weights(tmp_path)


def test_what_cannot_be_resumed_exactly_is_refused(folder: Path) -> None:
    where = folder / "ranks"
    with pytest.raises(ValueError, match=r"accumulate = 3, but the run in .* was begun with 1"):
        trainer(where / "left", accumulate=3).resume()
    with pytest.raises(ValueError, match=r"1 ranks with dropout = 0\.1; allowed: 2"):
        trainer(where / "dropout", dropout=0.1, accumulate=2).resume()
    train(folder / "three", accumulate=3, steps=1)
    with pytest.raises(
        ValueError, match=r"2 ranks, but the run in .* has 3 groups.*allowed: 1 or 3"
    ):
        trainer(folder / "three", accumulate=3, ranks=Ranks(rank=0, n=2)).resume()


def test_machines_that_share_no_folder_are_refused(reported: dict[str, Any]) -> None:
    said = reported["apart"]
    assert said.startswith("1 of 2 ranks do not see ") and "allowed: a folder that all" in said


def test_the_least_of_all_ranks(reported: dict[str, Any]) -> None:
    assert reported["least"] == 6 and Ranks().least(7) == 7


def test_rows_that_fit_are_not_searched_with_divided_weights(tmp_path: Path) -> None:
    ranks = Ranks(rank=0, n=2, device=torch.device("cpu"), distributed=True)
    model = trainer(tmp_path).model
    with pytest.raises(ValueError, match=r"'layers' with rows_at_once = -1; allowed: rows_at_once"):
        check_shard(model, TrainConfig(shard="layers", rows_at_once=-1), ranks)


def test_divided_weights_need_several_ranks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shard = 'step' in one process; allowed: a run that"):
        trainer(tmp_path, shard="step")


@pytest.fixture
def documents(tmp_path: Path, prose: Callable[..., str]) -> None:
    """The text.txt of recipes, with several documents."""
    text = "\n\f\n".join(prose(20 + 9 * n, seed=n) for n in range(8))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_run_which_others_go_on_with(
    cli: CommandLine, documents: None, tmp_path: Path
) -> None:
    write_recipe(steps="steps = 8")
    (died,) = torchrun(
        "tests.support.dying_rank", "train", "--recipe", "recipe.toml", folder=tmp_path
    )
    assert died.returncode != 0
    assert died.stderr.count("encoding text.txt") == 1
    said = " ".join(died.stderr.split())
    assert re.search(
        r"(rank 0 of 2 cannot go on|interrupted).*--resume continues from the last save", said
    )
    assert "SIGKILL" in said
    cli.works("train", "--recipe", "recipe.toml", "--resume")
    resumed = weights(Path("runs/recipe"))
    write_recipe("alone.toml", steps="steps = 8\naccumulate = 2")
    cli.works("train", "--recipe", "alone.toml")
    assert resumed == weights(Path("runs/alone"))


@pytest.mark.slow
def test_two_machines_train_together(cli: CommandLine, documents: None, tmp_path: Path) -> None:
    """Two agents on one machine, which find each other as those of two do."""
    write_recipe()
    command = ("streamlm", "train", "--recipe", "recipe.toml")
    one, other = torchrun(*command, ranks=1, agents=2, folder=tmp_path)
    assert one.returncode == other.returncode == 0, one.stderr + other.stderr
    assert sorted([one.stdout, other.stdout]) == ["", "runs/recipe/model\n"]
    lines = Path("runs/recipe/log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]
    write_recipe("alone.toml", steps="steps = 4\naccumulate = 2")
    cli.works("train", "--recipe", "alone.toml")
    assert weights(Path("runs/recipe")) == weights(Path("runs/alone"))
