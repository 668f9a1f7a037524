"""The adapter for lm-evaluation-harness: offline tasks, and what sessions say of the same texts."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", exc_type=ImportError)
pytest.importorskip("datasets", exc_type=ImportError)
sys.path.insert(0, str(Path(__file__).parents[1]))

import datasets
import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.api.task import ConfigurableTask
from lm_eval_streamlm import StreamLM

import streamlm

pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness
BOOK = Path(streamlm.__file__).parent / "assets" / "books" / "beyond-the-city.txt"


@pytest.fixture(scope="module")
def model() -> StreamLM:
    return StreamLM("books", batch_size=4, device="cpu")


def asked(kind: Any, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]


def test_loglikelihoods_are_those_of_a_session(model: StreamLM) -> None:
    """Of the last tokens of the whole text, for contexts beyond the model's memory too."""
    text = BOOK.read_text(encoding="utf-8")
    pairs = [
        ("", "The sea was calm."),
        ("The sea was", " calm."),
        ("The sea was ", "rough."),
        (text[:2000], text[2000:2100]),
        (text[:2000], " Whale whale."),
    ]
    found = model.loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True)
    for (context, continuation), (logprob, _) in zip(pairs, found, strict=True):
        report = streamlm.Session(model.checkpoint).score(context + continuation, logprobs=True)
        n = len(model.checkpoint.tokenizer.encode(context.rstrip()))
        assert logprob == pytest.approx(math.fsum(report.logprobs[n:]), abs=1e-3)


def test_what_is_greedy(model: StreamLM) -> None:
    context = "The old man looked at the"
    session = streamlm.Session(model.checkpoint)
    likeliest = "".join(session.generate(context, max_tokens=4, temperature=0))
    pairs = [(context, likeliest), (context, " zebra")]
    found = model.loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True)
    assert [greedy for _, greedy in found] == [True, False]


def test_a_text_is_read_without_a_cut(model: StreamLM) -> None:
    texts = [BOOK.read_text(encoding="utf-8")[:3000], "A short one.", ""]
    requests = asked("loglikelihood_rolling", *((text,) for text in texts))
    found = model.loglikelihood_rolling(requests, disable_tqdm=True)
    for text, logprob in zip(texts[:2], found, strict=False):
        assert logprob == -streamlm.Session(model.checkpoint).score(text).nats
    assert found[2] == 0


def test_generation_stops(model: StreamLM) -> None:
    requests = asked(
        "generate_until",
        *((f"{name} said", {"until": ["\n", "."], "max_gen_toks": 20}) for name in "ABCDEF"),
    )
    texts = model.generate_until(requests, disable_tqdm=True)
    assert len(texts) == 6 and all(texts)
    assert not any("." in text or "\n" in text for text in texts)
    assert texts == model.generate_until(requests, disable_tqdm=True)
    sampled = asked(
        "generate_until",
        *(
            ("A said", {"until": [], "max_gen_toks": 9, "do_sample": True, "seed": n})
            for n in (1, 2)
        ),
    )
    one, two = model.generate_until(sampled, disable_tqdm=True)
    assert one != two


def task(name: str, **config: Any) -> ConfigurableTask:
    """A task whose documents are in memory."""
    rows = [
        {"text": "Paris is a city. " * 9, "question": "Paris is a", "choices": [" city", " Xq"]},
        {"text": "It rained. " * 9, "question": "The king and the", "choices": [" Zr", " queen"]},
    ]
    data = datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})
    return ConfigurableTask(
        config={
            "task": name,
            "dataset_path": "memory",
            "custom_dataset": lambda **_: data,
            "test_split": "test",
            **config,
        }
    )


def test_offline_tasks(model: StreamLM) -> None:
    tasks = [
        task(
            "choose",
            output_type="multiple_choice",
            doc_to_text="{{question}}",
            doc_to_choice="{{choices}}",
            doc_to_target="{{choices.index(' city') if ' city' in choices else 1}}",
            target_delimiter="",
        ),
        task(
            "read",
            output_type="loglikelihood_rolling",
            doc_to_text="",
            doc_to_target="{{text}}",
            metric_list=[{"metric": "bits_per_byte"}],
        ),
        task(
            "write",
            output_type="generate_until",
            doc_to_text="{{question}}",
            doc_to_target="{{question}}",
            generation_kwargs={"until": ["."], "max_gen_toks": 5},
            metric_list=[{"metric": "exact_match"}],
        ),
    ]
    found = lm_eval.simple_evaluate(model, tasks=tasks, bootstrap_iters=0)
    results = {name: dict(values) for name, values in found["results"].items()}
    assert results["choose"]["acc,none"] == 1.0
    reports = [
        streamlm.Session(model.checkpoint).score(text)
        for text in ("Paris is a city. " * 9, "It rained. " * 9)
    ]
    bits = sum(r.nats for r in reports) / math.log(2) / sum(r.scored_bytes for r in reports)
    assert results["read"]["bits_per_byte,none"] == pytest.approx(bits)
    assert results["write"]["exact_match,none"] == 0.0


def test_the_harness_knows_it_by_name(tiny_chat: Callable[[], Path]) -> None:
    assert get_model("streamlm") is StreamLM
    made = StreamLM.create_from_arg_string(
        f"pretrained={tiny_chat()},memory_len=32,segment_len=16", {"batch_size": 2, "device": "cpu"}
    )
    assert made.checkpoint.model.config.memory_len == 32


@pytest.fixture
def tiny_chat(tmp_path: Path) -> Callable[[], Path]:
    from tests.support.chats import chat_folder

    return lambda: chat_folder(tmp_path)
