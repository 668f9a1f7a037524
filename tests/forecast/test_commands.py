"""The commands of `streamlm forecast`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from streamlm.cli.app import main
from streamlm.forecast.training import LAST


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["streamlm", "forecast", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        code = ended.value.code
        return code if isinstance(code, int) else 0, captured.out, captured.err

    return run


def test_the_commands(run: Callable[..., tuple[int, str, str]], csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["--horizon", 4, "--input-len", 16, "--label-len", 8, "--d-model", 16, "--d-ff", 16]
    options += ["--epochs", 1, "--out", out]
    status, text, error = run("train", csv, *options, "--column", "b", "--json")
    assert status == 0, error
    facts = json.loads(text)
    assert facts["windows"] == 77 and facts["epochs"][0]["best"] and facts["mse"] > 0
    status, text, error = run("eval", out, csv)
    assert status == 0 and f"{facts['mse']:.4f}" in text
    status, text, error = run("train", csv, *options)
    assert status == 1 and "holds a run already; allowed: --resume, or another folder" in error
    status, text, error = run("train", csv, *options, "--column", "b", "--resume", "--json")
    assert status == 0 and json.loads(text)["mse"] == facts["mse"]
    save, plot = tmp_path / "next.csv", tmp_path / "next.png"
    status, text, error = run("predict", out, csv, "--save", save, "--plot", plot, "--json")
    assert status == 0, error
    found = json.loads(text)
    lines = save.read_text().splitlines()
    assert lines[0] == "date,b" and len(lines) == 5 == len(found["dates"]) + 1
    assert float(lines[1].split(",")[1]) == found["values"][0][0]
    assert plot.stat().st_size > 5000
    assert "2016-07-17 19:00:00" in run("predict", out, csv)[1]


def test_the_commands_refuse(
    run: Callable[..., tuple[int, str, str]], csv: Path, tmp_path: Path
) -> None:
    for arguments, message in (
        (["predict", tmp_path, csv], "holds no forecaster: model.safetensors is missing"),
        (["train", csv, "--out", tmp_path / "x", "--column", "z"], "column 'z'; allowed: a, b"),
        (["train", csv, "--out", tmp_path / "x", "--horizon", 300], "the train part has 280 rows"),
        (["train", tmp_path / "no.csv", "--out", tmp_path / "x"], "no.csv"),
    ):
        status, text, error = run(*arguments)
        assert status == 1 and text == "" and message in error, error
    assert not (tmp_path / "x" / LAST).exists()
