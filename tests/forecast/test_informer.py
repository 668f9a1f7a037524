"""ProbSparse attention against its formulas, and the Informer and its settings."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from streamlm.forecast.attention import Attention, few, prob_sparse, sparsity
from streamlm.forecast.config import ForecastConfig
from streamlm.forecast.forecaster import MODELS
from streamlm.forecast.informer import Distil, Encoder, Informer
from streamlm.forecast.series import Batch
from tests.support.waves import SMALL


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
def test_prob_sparse_attention_equals_its_formulas(causal: bool, lazy: Any) -> None:
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


def batch(config: ForecastConfig, *, n: int = 3, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def made(rows: int, columns: int) -> Tensor:
        return torch.randn(n, rows, columns, generator=generator)

    past, future = config.input_len, config.horizon
    columns, marks = config.n_columns, config.n_marks
    return Batch(made(past, columns), made(past, marks), made(future, columns), made(future, marks))


def test_lengths_of_distilling_encoders_and_replicas() -> None:
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
def test_a_forecast_does_not_read_the_future(model: str) -> None:
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


def test_an_informer_without_sampling_is_a_transformer() -> None:
    """If all queries attend and nothing is distilled, both models are the same."""
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
        ({"model": "lstm"}, "model = 'lstm'; allowed: nlinear or dlinear or"),
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
