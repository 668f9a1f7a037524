"""Forecasting: series and their windows, ProbSparse attention, the Informer, training, commands."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from streamlm.cli.app import main
from streamlm.forecast.attention import Attention, few, prob_sparse, sparsity
from streamlm.forecast.config import ForecastConfig
from streamlm.forecast.informer import Distil, Encoder, Informer
from streamlm.forecast.series import Batch, Scale, Series, Windows, time_marks
from streamlm.forecast.training import LAST, MODELS, Epoch, Forecaster, train

CPU = torch.device("cpu")
SMALL = ForecastConfig(
    columns=("a", "b"),
    input_len=16,
    label_len=8,
    horizon=4,
    d_model=16,
    n_heads=2,
    d_ff=32,
    batch_size=16,
    learning_rate=3e-3,
    epochs=3,
)


def write(path: Path, n: int, *, minutes: int = 60, begin: str = "2016-07-01T00:00:00") -> Path:
    """Two waves, and how they are read."""
    dates = np.datetime64(begin) + np.arange(n) * np.timedelta64(minutes, "m")
    with open(path, "w", encoding="utf-8") as file:
        file.write("date,a,b\n")
        for index, date in enumerate(dates):
            wave = math.sin(index / 3), 5 + 2 * math.cos(index / 5)
            file.write(f"{str(date).replace('T', ' ')},{wave[0]:.6f},{wave[1]:.6f}\n")
    return path


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    return write(tmp_path / "waves.csv", 400)


# -- series -----------------------------------------------------------------------------------


def test_a_series_is_read_as_it_stands(csv: Path, tmp_path: Path) -> None:
    series = Series.load(csv)
    assert series.names == ("a", "b") and series.values.shape == (400, 2)
    assert series.ends == (280, 320, 400) and series.step == np.timedelta64(3600, "s")
    assert series.only(["b"]).values[:, 0].tolist() == series.values[:, 1].tolist()
    assert str(series.following(2)[1]) == str(series.dates[-1] + np.timedelta64(2, "h"))
    other = tmp_path / "other.csv"
    other.write_text("x, Timestamp\n1,2016/07/01 00:00\n\n2,2016/07/02 00:00\n4,2016/07/04 00:00\n")
    found = Series.load(other)
    assert found.values.tolist() == [[1], [2], [4]] and found.names == ("x",)


@pytest.mark.parametrize(("minutes", "rows"), [(60, 24), (15, 96)])
def test_the_papers_splits(minutes: int, rows: int, tmp_path: Path) -> None:
    n = 20 * 30 * rows + 7
    series = Series.load(write(tmp_path / "ETTx.csv", n, minutes=minutes))
    assert series.ends == (12 * 30 * rows, 16 * 30 * rows, 20 * 30 * rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "columns none; allowed: one named date or time"),
        ("a,b\n1,2\n", "columns a, b; allowed: one named date"),
        ("date\n2016-01-01\n", "columns date; allowed: .* at least one of numbers"),
        ("date,a\n2016-01-01,1\n2016-01-02,x\n", "line 3: 'x'; allowed: numbers, none missing"),
        ("date,a\n2016-01-01,1\n2016-01-02,\n", "line 3: ''; allowed: numbers, none missing"),
        ("date,a\n2016-01-01,1\n2016-01-02,nan\n", "line 3: 'nan'; allowed: numbers"),
        ("date,a\n2016-01-01,1,2\n", "line 2: 3 fields; allowed: 2"),
        ("date,a\nyesterday,1\n", "line 2: date 'yesterday'; allowed: 2016-07-01 00:15:00"),
        ("date,a\n2016-01-01,1\n2016-01-02,1\n2016-01-02,1\n", "line 4: dates must rise"),
        ("date,a\n2016-01-01,1\n", "line 2: dates must rise, and there must be three rows"),
    ],
)
def test_what_is_no_series_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Series.load(path)


def test_time_marks_are_those_of_the_calendar() -> None:
    texts = ["2016-02-29T00:15:00", "2016-12-31T23:45:00", "2017-01-01T05:00:00"]
    found = time_marks(np.array(texts, "datetime64[s]"), np.timedelta64(900, "s"))
    for row, text in zip(found, texts, strict=True):
        date = datetime.fromisoformat(text)
        wanted = [
            date.minute / 59,
            date.hour / 23,
            date.weekday() / 6,
            (date.day - 1) / 30,
            (date.timetuple().tm_yday - 1) / 365,
        ]
        assert row.tolist() == pytest.approx([value - 0.5 for value in wanted], abs=1e-6)
    dates = np.array(texts, "datetime64[s]")
    assert time_marks(dates, np.timedelta64(1, "h")).tolist() == found[:, 1:].tolist()
    assert time_marks(dates, np.timedelta64(1, "D")).tolist() == found[:, 2:].tolist()


def test_windows_keep_the_parts_apart(csv: Path) -> None:
    series = Series.load(csv)
    scale = Scale.of(series)
    train_part = scale.apply(series.values[:280])
    assert train_part.mean(axis=0) == pytest.approx(0, abs=1e-5)
    assert train_part.std(axis=0) == pytest.approx(1, abs=1e-5)
    assert scale.undo(train_part) == pytest.approx(series.values[:280], abs=1e-5)
    forecast: dict[str, set[int]] = {}
    for part, low, high in (("train", 0, 280), ("valid", 280, 320), ("test", 320, 400)):
        windows = Windows(series, scale, part, input_len=16, horizon=4)
        whole = windows.take(torch.arange(len(windows)), CPU)
        assert whole.past.shape == (len(windows), 16, 2)
        assert whole.future_marks.shape == (len(windows), 4, 4)
        rows = torch.from_numpy(scale.apply(series.values))
        first = low + (16 if part == "train" else 0)
        assert torch.equal(whole.future[0], rows[first : first + 4])
        assert torch.equal(whole.past[0], rows[first - 16 : first])
        assert torch.equal(whole.future[-1], rows[high - 4 : high])
        forecast[part] = set(range(first, high))
    assert not forecast["train"] & forecast["test"] and not forecast["valid"] & forecast["test"]
    windows = Windows(series, scale, "test", input_len=16, horizon=4)
    batches = [len(batch.future) for batch in windows.batches(32, CPU)]
    assert sum(batches) == len(windows) == 77 and batches[-1] == 13  # none is dropped
    with pytest.raises(ValueError, match="the valid part has 56 rows; allowed: at least 66"):
        Windows(series, scale, "valid", input_len=16, horizon=50)


# -- attention --------------------------------------------------------------------------------


def heads(n: int, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, 2, 3, n, 8, generator=generator, dtype=torch.float64)
    return query, key, value


@pytest.mark.parametrize("causal", [False, True])
def test_with_all_queries_it_is_full_attention(causal: bool) -> None:
    query, key, value = heads(9)
    sample = torch.randint(9, (9, 4))
    found = prob_sparse(query, key, value, factor=9, causal=causal, sample=sample)
    wanted = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    assert torch.allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize("lazy", ["sum", "mean"])
@pytest.mark.parametrize("causal", [False, True])
def test_each_row_is_what_the_formulas_say(causal: bool, lazy: Any) -> None:
    n, factor = 24, 2
    query, key, value = heads(n, seed=1)
    sample = torch.randint(n, (n, 5), generator=torch.Generator().manual_seed(2))
    found = prob_sparse(query, key, value, factor=factor, causal=causal, sample=sample, lazy=lazy)
    n_chosen = factor * math.ceil(math.log(n))
    assert few(n, factor) == n_chosen == 8 and few(3, 5) == 3 and few(1, 5) == 1
    for b in range(2):
        for h in range(3):
            measure = []
            for i in range(n):
                scores = [float(query[b, h, i] @ key[b, h, j]) for j in sample[i]]
                measure.append(max(scores) - sum(scores) / n)
            assert sparsity(query, key, sample)[b, h].tolist() == pytest.approx(measure)
            chosen = sorted(range(n), key=lambda i: -measure[i])[:n_chosen]
            for i in range(n):
                seen = range(i + 1) if causal else range(n)
                if i in chosen:
                    p = torch.stack([query[b, h, i] @ key[b, h, j] for j in seen]) / math.sqrt(8)
                    wanted = p.softmax(0) @ value[b, h, list(seen)]
                else:
                    wanted = value[b, h, list(seen)].sum(0)
                    if not causal or lazy == "mean":
                        wanted = wanted / len(seen)
                assert torch.allclose(found[b, h, i], wanted, atol=1e-12)


def test_heads_and_gradients_of_a_layer() -> None:
    torch.manual_seed(0)
    layer = Attention(16, 2, factor=1).double()
    x = torch.randn(2, 12, 16, dtype=torch.float64, requires_grad=True)
    sample = torch.randint(12, (12, 3))
    assert layer(x, x, sample).shape == (2, 12, 16)
    assert torch.autograd.gradcheck(lambda x: layer(x, x, sample), (x,), atol=1e-6)
    layer(x, x, sample).sum().backward()
    assert all(weight.grad is not None for weight in layer.parameters())


# -- the Informer -----------------------------------------------------------------------------


def batch(config: ForecastConfig, *, n: int = 3, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def made(rows: int, columns: int) -> Tensor:
        return torch.randn(n, rows, columns, generator=generator)

    past, future = config.input_len, config.horizon
    columns, marks = config.n_columns, config.n_marks
    return Batch(made(past, columns), made(past, marks), made(future, columns), made(future, marks))


def test_distilling_halves_and_replicas_shorten() -> None:
    for n in (1, 2, 5, 96):
        assert Distil(8).eval()(torch.zeros(1, n, 8)).shape[1] == math.ceil(n / 2)
    config = replace(SMALL, input_len=96, encoder_layers=(3, 2, 1))
    model, lengths = Informer(config), []
    for encoder in model.encoders:
        encoder.register_forward_hook(lambda _, given, out: lengths.append(out.shape[1]))
    model(batch(config))
    assert lengths == [24, 24, 24]  # together 72, as in the paper's figure
    assert Encoder(replace(SMALL, distil=False), 2)(torch.zeros(1, 16, 16)).shape[1] == 16


@pytest.mark.parametrize("model", MODELS)
def test_a_forecast_does_not_look_at_the_future(model: str) -> None:
    config = replace(SMALL, model=model)
    torch.manual_seed(0)
    forecaster, given = MODELS[model](config).eval(), batch(config)
    answers = []
    for future in (given.future, torch.zeros_like(given.future), 1e6 + given.future):
        torch.manual_seed(3)
        answers.append(forecaster(replace(given, future=future)))
    assert answers[0].shape == (3, 4, 2)
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])
    torch.manual_seed(3)
    changed = forecaster(replace(given, past=given.past + torch.randn_like(given.past)))
    assert not torch.allclose(answers[0], changed)


def test_transformers_without_sampling_are_the_same_model() -> None:
    """An Informer whose every query attends and that does not distil is the Transformer."""
    config = replace(SMALL, factor=100, distil=False)
    torch.manual_seed(0)
    informer = Informer(config).eval()
    transformer = Informer(replace(config, model="transformer")).eval()
    transformer.load_state_dict(informer.state_dict())
    given = batch(config)
    assert torch.allclose(informer(given), transformer(given), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "lstm"}, "model = 'lstm'; allowed: informer or transformer or"),
        ({"label_len": 17}, "label_len = 17; allowed: 0 to input_len = 16"),
        ({"d_model": 10}, "d_model = 10; allowed: a multiple of 2 · n_heads = 4"),
        ({"horizon": 0}, "horizon = 0; allowed: an integer of at least 1"),
        ({"encoder_layers": ()}, r"encoder_layers = \(\); allowed: integers of at least 1"),
        ({"encoder_layers": (1,) * 6}, "allowed: fewer for input_len = 16"),
        ({"lazy": "max"}, "lazy = 'max'; allowed: sum or mean"),
        ({"dropout": 1.0}, "dropout = 1.0; allowed"),
        ({"learning_rate": 0}, "learning_rate = 0; allowed: a number above 0"),
        ({"columns": ()}, r"columns = \(\); allowed: at least one name"),
    ],
)
def test_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **options)
    with pytest.raises(ValueError, match="unknown settings of a forecaster: depth"):
        ForecastConfig.from_dict({**SMALL.to_dict(), "depth": 3})
    assert ForecastConfig.from_dict(json.loads(json.dumps(SMALL.to_dict()))) == SMALL


# -- training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_it_learns_waves(model: str, csv: Path, tmp_path: Path) -> None:
    series = Series.load(csv)
    rate = 0.02 if "linear" in model else 3e-3
    config = replace(SMALL, model=model, learning_rate=rate, epochs=4)
    epochs: list[Epoch] = []
    found = train(series, config, tmp_path / "run", device=CPU, told=epochs.append)
    windows = found.windows(series, "test")
    errors = found.errors(windows)
    whole = windows.take(torch.arange(len(windows)), CPU)
    last = whole.past[:, -1:].expand_as(whole.future)
    assert errors.mse < 0.5 * float(F.mse_loss(last, whole.future))
    assert errors.windows == len(windows) and 0 < errors.mae < 1
    assert len(epochs) == 4 and min(epochs, key=lambda epoch: epoch.valid).best
    assert found.errors(windows) == errors  # the same keys are sampled
    again = Forecaster.load(tmp_path / "run", device=CPU)
    assert again.errors(windows) == errors and again.config == config


def test_an_interrupted_training_ends_where_it_would_have(csv: Path, tmp_path: Path) -> None:
    series, config = Series.load(csv), SMALL
    whole = train(series, config, tmp_path / "whole", device=CPU)

    def stop(epoch: Epoch) -> None:
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(series, config, tmp_path / "parts", device=CPU, resume=True, told=stop)
    parts = train(series, config, tmp_path / "parts", device=CPU, resume=True)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, parts.model.state_dict()[name]), name


def test_it_ends_early_and_keeps_the_best(
    csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamlm.forecast.training import Errors

    losses = iter([0.5, 0.3, 0.4, 0.9, 0.1])
    monkeypatch.setattr(Forecaster, "errors", lambda *_: Errors(next(losses), 0, 1))
    epochs: list[Epoch] = []
    config = replace(SMALL, model="nlinear", epochs=9, patience=2)
    train(Series.load(csv), config, tmp_path, device=CPU, told=epochs.append)
    assert [epoch.best for epoch in epochs] == [True, True, False, False]
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        train(
            Series.load(csv),
            replace(config, learning_rate=1e30),
            tmp_path / "diverged",
            device=CPU,
        )


def test_forecasts_are_in_real_units(csv: Path, tmp_path: Path) -> None:
    series = Series.load(csv)
    config = replace(SMALL, model="nlinear", learning_rate=0.1, epochs=8, patience=8)
    found = train(series, config, tmp_path, device=CPU)
    dates, values = found.forecast(series)
    assert str(dates[0]) == str(series.dates[-1] + np.timedelta64(1, "h"))
    wanted = [[math.sin(n / 3), 5 + 2 * math.cos(n / 5)] for n in range(400, 404)]
    stays = np.abs(series.values[-1] - wanted).mean()
    assert np.abs(values - wanted).mean() < 0.7 * stays
    short = Series(series.dates[:9], series.values[:9], series.names, (5, 6, 9))
    with pytest.raises(ValueError, match="the series has 9 rows; allowed: at least 16"):
        found.forecast(short)
    daily = Series.load(write(tmp_path / "daily.csv", 40, minutes=1440))
    with pytest.raises(ValueError, match="gives 3 features of a date; the forecaster was trained"):
        found.forecast(daily)


# -- commands ---------------------------------------------------------------------------------


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


def test_what_the_commands_refuse(
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
