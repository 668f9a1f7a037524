"""The commands of `streamlm forecast`."""

import json
import re
from collections.abc import Callable
from datetime import date, timedelta
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
    options += ["--epochs", 1, "--out", out, "--model", "dlinear"]
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
    assert lines[0] == "date,b,b_low90,b_high90,b_baseline" and len(lines) == 5
    assert len(found["dates"]) == 4 and 0 < found["coverage"] <= 1 and found["season"] >= 1
    numbers = [float(field) for field in lines[1].split(",")[1:]]
    rows = [found[name][0][0] for name in ("values", "low", "high", "baseline")]
    assert numbers == pytest.approx(rows, abs=1e-4) and rows[1] < rows[0] < rows[2]
    assert plot.stat().st_size > 5000
    text = run("predict", out, csv)[1]
    assert "2016-07-17 19:00:00" in text and "90% from" in text


def test_the_commands_refuse(
    run: Callable[..., tuple[int, str, str]], csv: Path, tmp_path: Path
) -> None:
    for arguments, message in (
        (["predict", tmp_path, csv], "holds no forecaster: model.safetensors is missing"),
        (
            ["train", csv, "--out", tmp_path / "x", "--column", "z"],
            "column 'z'; allowed: a, b",
        ),
        (
            ["train", csv, "--out", tmp_path / "x", "--horizon", 300],
            "too few for a horizon of 300",
        ),
        (["train", tmp_path / "no.csv", "--out", tmp_path / "x"], "no.csv"),
    ):
        status, text, error = run(*arguments)
        assert status == 1 and text == "" and message in error, error
    assert not (tmp_path / "x" / LAST).exists()


FAST = ("--horizon", 4, "--input-len", 8, "--epochs", 1)


def table(path: Path, *, n: int = 60, step: int = 1, header: str = "date,a,b") -> Path:
    """A file of days with two columns of numbers."""
    first = date(2022, 1, 3)
    rows = (f"{first + timedelta(days=step * k)},{k % 7 + 52_315.7:.1f},{k % 5}" for k in range(n))
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_resume_and_predict_refuse_another_series(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    out, days = tmp_path / "run", table(tmp_path / "days.csv")
    assert run("train", days, "--out", out, *FAST)[0] == 0
    weeks = table(tmp_path / "weeks.csv", step=7)
    other = table(tmp_path / "other.csv", header="date,a,c")
    longer = table(tmp_path / "longer.csv", n=70)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for file, message in (
        (weeks, "holds a run with step 1 day, not 1 week; allowed: the same, or another folder"),
        (other, "holds a run with columns a, b, not a, c; allowed: the same"),
        (longer, "its rows have changed; allowed: the same file, or another folder"),
    ):
        status, text, error = run("train", file, "--out", out, *FAST, "--resume")
        assert status == 1 and message in error and text == "", error
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}
    for command in ("predict", "eval"):
        for file, message in (
            (weeks, "weeks.csv: the step of the series is 1 week; allowed: 1 day"),
            (other, "other.csv, line 1: column 'b'; allowed: a, c"),
        ):
            status, text, error = run(command, out, file)
            assert status == 1 and message in error and text == "", error
    assert run("predict", out, longer)[0] == 0  # rows that came since are what it is for


def test_a_save_overwrites_nothing_unasked(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    out, days = tmp_path / "run", table(tmp_path / "days.csv")
    assert run("train", days, "--out", out, *FAST)[0] == 0
    link, there = tmp_path / "link.csv", tmp_path / "there.csv"
    link.symlink_to(days)
    there.write_text("mine\n")
    data = days.read_bytes()
    for save in (days, link, tmp_path / "." / "days.csv"):
        for force in ((), ("--force",)):
            status, _, error = run("predict", out, days, "--save", save, *force)
            assert status == 1 and "is read by this command; allowed: another file" in error
    assert run("predict", out, days, "--plot", days, "--force")[0] == 1
    assert days.read_bytes() == data
    for option in ("--save", "--plot"):
        status, _, error = run("predict", out, days, option, there)
        assert status == 1 and "there.csv exists; allowed: --force, or another file" in error
    assert there.read_text() == "mine\n"
    assert run("predict", out, days, "--save", there, "--force")[0] == 0
    assert there.read_text().startswith("date,a,a_low90,a_high90,a_baseline,b,")
    status, _, error = run("predict", out, days, "--save", there, "--plot", there, "--force")
    assert status == 1 and "allowed: two files" in error


def test_tables_show_the_numbers_of_the_file(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    out, days = tmp_path / "run", table(tmp_path / "days.csv")
    assert run("train", days, "--out", out, *FAST, "--column", "a")[0] == 0
    status, text, _ = run("predict", out, days)
    lines = text.splitlines()
    assert status == 0 and len(lines) == 5
    assert re.fullmatch(r"date +a +90% from +to +7 rows before", lines[0])
    assert re.fullmatch(r"2022-03-04( +52,3\d\d\.\d){4}", lines[1]), lines[1]
    german = tmp_path / "deutsch.csv"
    german.write_text(days.read_text().replace(",", ";").replace(".", ","), encoding="utf-8")
    saved = tmp_path / "next.csv"
    status, text, _ = run("predict", out, german, "--save", saved)
    assert re.fullmatch(r"2022-03-04( +52\.3\d\d,\d){4}", text.splitlines()[1]), text
    assert re.fullmatch(r"2022-03-04(;523\d\d,\d{3}){4}", saved.read_text().splitlines()[1])


def test_a_file_is_predicted_as_it_was_trained_on(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    days = table(tmp_path / "days.csv", header="when,a,b")
    holes = tmp_path / "holes.csv"
    lines = days.read_text().splitlines()
    del lines[20:22]
    holes.write_text("\n".join(lines).replace(",52315.7,", ",,") + "\n")
    out = tmp_path / "run"
    status, _, error = run("train", holes, "--out", out, *FAST, "--date-column", "when")
    assert status == 1 and "line 2: column 'a' has no value" in error and "or --fill" in error
    status, _, error = run(
        "train", holes, "--out", out, *FAST, "--date-column", "when", "--fill", "linear"
    )
    assert status == 0 and "filled 2 missing rows and 9 missing values (linear)" in error, error
    status, _, error = run("predict", out, holes)
    assert status == 0 and "filled 2 missing rows" in error
    for options, message in (
        (("--fill", "magic"), "--fill 'magic'; allowed: linear, previous, zero"),
        (("--no-date", "--date-column", "x"), "--no-date excludes"),
        (("--decimal", "x"), "--decimal 'x'; allowed: . or ,"),
        (("--delimiter", "ab"), "--delimiter 'ab'; allowed: one character, or comma"),
    ):
        status, _, error = run("train", days, "--out", tmp_path / "x", *options)
        assert status == 1 and message in error, error
