"""Drafts change nothing but the time: not the text, not its odds, not what a session remembers."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import streamlm
import streamlm.runtime.speculation
from streamlm.checkpoints.checkpoint import Checkpoint, load_checkpoint
from streamlm.cli.app import main
from streamlm.models.base import Model
from streamlm.models.cache import Cache
from streamlm.runtime.drafter import (
    DraftContext,
    Drafter,
    DrafterConfig,
    load_drafter,
    save_drafter,
)
from streamlm.runtime.sampling import Sampling
from streamlm.runtime.speculation import Accepted, generate_pass
from streamlm.runtime.stream import advance
from streamlm.sessions.session import Session
from streamlm.state import State
from streamlm.training.config import TrainConfig
from streamlm.training.data import Corpus
from streamlm.training.drafter import DraftReader, DraftTrainer
from tests.support.invariants import assert_same_state, random_tokens, tiny_model

SHORT: dict[str, Any] = {"compressed_len": 0, "compression_loss": "none"}
HEADS: dict[str, dict[str, Any]] = {
    "relative": {},
    "plain": {**SHORT, "memory_len": 0},
    "adaptive": {"cutoffs": [5], "div_val": 2},
    "most-used": {"compression": "most-used", "memory_len": 8, "compressed_len": 4},
    "full": {**SHORT, "head": "full", "memory_len": 0},
    "recurrent": {**SHORT, "head": "recurrent", "memory_len": 0},
    "linformer": {**SHORT, "head": "linformer", "memory_len": 16, "projected_len": 3},
    "informer": {**SHORT, "head": "informer", "memory_len": 16, "factor": 1},
    "sketch": {**SHORT, "head": "sketch", "memory_len": 8, "compressed_len": 5, "coverage": 0.1},
    "sinks": {**SHORT, "head": "sinks", "pinned_len": 3},
}
GREEDY = Sampling(temperature=0)
SMALL = {"d_model": 8, "n_heads": 2, "d_ff": 16, "label_len": 3, "context_len": 4}


class Oracle(Drafter):
    """Reads on with the model itself: its first `right` guesses are the model's, the others not."""

    def __init__(self, model: Model, config: DrafterConfig, right: int, wrong: int = 0) -> None:
        super().__init__(config)
        self.model, self.right, self.wrong = model, right, wrong
        self.guesses: list[int] = []

    def context(self, tokens: Tensor, hidden: Tensor, state: State) -> DraftContext:
        self.at = tokens[:, -1:], state
        return super().context(tokens, hidden, state)

    @torch.no_grad()
    def forward(self, model: Model, context: DraftContext) -> Tensor:
        token, state = self.at
        found = []
        for index in range(self.config.n_tokens):
            hidden, state = advance(self.model, token, state)
            found.append(hidden if index < self.right else -hidden.roll(self.wrong, dims=1))
            self.guesses.append(int(self.model.logits(found[-1]).argmax()))
            token = self.model.logits(hidden).argmax(dim=-1)[None]
        return torch.stack(found, dim=1)


def config_for(model: Model, **settings: Any) -> DrafterConfig:
    bound = {"slot_width": model.config.d_model, "backbone": "tiny", "weights": "none"}
    return DrafterConfig(**{**SMALL, **bound, **settings})


def speak(
    model: Model,
    drafter: Drafter | None,
    n: int,
    *,
    sampling: Sampling = GREEDY,
    seed: int = 0,
) -> tuple[list[int], State, list[list[Accepted]]]:
    """Write n tokens on from some that were read; the state has read all but the last."""
    tokens = random_tokens(model, 21)
    cache = Cache()
    hidden, state = advance(model, tokens[:, :-1], model.init_state(1), cache)
    known, random, passes = tokens[0].numpy(), np.random.PCG64(seed), []
    suppressed = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    while (left := n - sum(map(len, passes))) > 0:
        found = generate_pass(
            model,
            drafter if drafter is not None else Drafter(config_for(model)),
            known=known,
            state=state,
            cache=cache,
            hidden=hidden if drafter is not None else None,
            sampling=sampling,
            recent=known,
            random=random,
            suppressed=suppressed,
            limit=left,
        )
        passes.append(found)
        known = np.append(known, [one.token for one in found])
        state, hidden = found[-1].state, found[-1].hidden
    return known[21:].tolist(), state, passes


def small(head: str) -> Model:
    options = {"segment_len": 8, "memory_len": 6, "compressed_len": 5, **HEADS[head]}
    model: Model = tiny_model(**options).requires_grad_(False)
    return model


# -- the same text --------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [1.0, 1.7])
@pytest.mark.parametrize("head", HEADS)
def test_greedy_text_is_the_same(head: str, penalty: float) -> None:
    model = small(head)
    sampling = replace(GREEDY, repetition_penalty=penalty)
    wanted, plain, _ = speak(model, None, 18, sampling=sampling)
    for right in (0, 2):
        drafter = Oracle(model, config_for(model), right)
        found, state, passes = speak(model, drafter, 18, sampling=sampling)
        assert found == wanted
        assert_same_state(state, plain, tolerance=1e-10)
        accepted = sum(one.drafted for each in passes for one in each)
        if penalty == 1:  # the oracle does not know of penalties
            assert len(passes) == 18 if right == 0 else accepted > 6


@pytest.mark.parametrize("head", HEADS)
def test_the_state_of_every_token_goes_on_by_itself(head: str) -> None:
    """Each token of a pass comes with a stream of its own, though they share what was computed."""
    model = small(head)
    _, _, passes = speak(model, Oracle(model, config_for(model), 2), 12)
    found = [one for each in passes for one in each]
    assert any(len(each) == 3 for each in passes)
    tokens = random_tokens(model, 21)
    ids = torch.cat([tokens, torch.tensor([[one.token for one in found]])], dim=1)
    again, from_start = advance(model, ids, model.init_state(1))
    for index, one in reversed(list(enumerate(found))):
        # Going on from a later state must not have changed what an earlier one holds.
        _, wanted = advance(model, ids[:, : 21 + index], model.init_state(1))
        assert_same_state(one.state, wanted, tolerance=1e-10)
        on, ahead = advance(model, ids[:, 21 + index :], one.state)
        assert torch.allclose(on, again, atol=1e-10)
        assert_same_state(ahead, from_start, tolerance=1e-10)


@pytest.mark.parametrize("head", HEADS)
def test_what_was_not_accepted_leaves_no_trace(head: str) -> None:
    """Streams after two drafts that differ in what was rejected alone are equal, bit for bit."""
    model = small(head)
    # Both guess the first token of a pass right, and the others wrong, each in its own way.
    drafters = [Oracle(model, config_for(model), 1, wrong) for wrong in (0, 1)]
    (tokens, one, passes), (others, other, _) = (speak(model, each, 12) for each in drafters)
    assert tokens == others and drafters[0].guesses != drafters[1].guesses
    assert max(map(len, passes)) == 2
    assert_same_state(one, other, tolerance=1e-12)
    if head == "adaptive":  # tokens of a bin are embedded in one product, whose rows are rounded
        return  # by how many they are, whichever tokens came in the same call
    assert one.digest() == other.digest()
    read = torch.tensor([[tokens[-1]]])
    (ahead, state), (also, state_too) = (advance(model, read, each) for each in (one, other))
    assert torch.equal(ahead, also) and state.digest() == state_too.digest()


# -- the same odds --------------------------------------------------------------------------------

VOCABULARY, LENGTH = 4, 3


class Remembered(Sampling):
    """Answers from memory what it was asked before."""

    answers: ClassVar[dict[object, Tensor]] = {}

    def probabilities(self, logits: Tensor, recent: np.ndarray) -> Tensor:
        asked = (self, logits.numpy().tobytes(), recent.tobytes())
        if asked not in self.answers:
            self.answers[asked] = super().probabilities(logits, recent)
        return self.answers[asked]


SAMPLING = Remembered(temperature=1.5, top_p=0.97, repetition_penalty=1.4)


def remember(thing: Any, name: str, key: Callable[..., object]) -> None:
    """Let a pure method answer from memory; all states and the like that it meets stay alive."""
    method, answers = getattr(thing, name), {}

    def answer(*arguments: Any) -> Any:
        asked = key(*arguments)
        if asked not in answers:
            answers[asked] = method(*arguments), arguments
        return answers[asked][0]

    object.__setattr__(thing, name, answer)


@pytest.fixture(scope="module")
def odds() -> Callable[[int, int], np.ndarray]:
    """How often each sequence of LENGTH tokens is written in so many draws, and is to be."""
    model = tiny_model(vocab_size=VOCABULARY, segment_len=8, n_layers=1).requires_grad_(False)
    torch.manual_seed(0)
    drafter = Drafter(config_for(model, n_tokens=2)).double().requires_grad_(False)
    drafter.output.weight *= 4  # sure of itself, and often wrong
    begin = random_tokens(model, 5)
    hidden, state = advance(model, begin[:, :-1], model.init_state(1))
    known = begin[0].numpy()
    suppressed = torch.zeros(VOCABULARY, dtype=torch.bool)
    exact = np.ones((VOCABULARY,) * LENGTH)
    for sequence in product(range(VOCABULARY), repeat=LENGTH):
        for index, token in enumerate(sequence):
            ids = torch.cat([begin, torch.tensor([sequence[:index]], dtype=torch.int64)], dim=1)
            logits = model.logits(advance(model, ids, model.init_state(1))[0])[0]
            exact[sequence] *= float(
                Sampling.probabilities(SAMPLING, logits, ids[0].numpy())[token]
            )
    remember(model, "hidden", lambda tokens, state, cache: (tuple(tokens[0].tolist()), id(state)))
    remember(model, "logits", lambda hidden: (hidden.data_ptr(), hidden.shape))
    remember(model, "truncate", lambda before, tokens, after, n, cache: (id(before), id(after), n))
    remember(
        drafter, "context", lambda tokens, hidden, state: (tuple(tokens[0].tolist()), id(state))
    )
    remember(drafter, "forward", lambda model, context: id(context))

    def count(draws: int, seed: int) -> np.ndarray:
        counts, random = np.zeros((VOCABULARY,) * LENGTH), np.random.PCG64(seed)
        for _ in range(draws):
            written: list[int] = []
            last: Any = (state, hidden)
            while len(written) < LENGTH:
                so_far = np.append(known, np.array(written, known.dtype))
                found = generate_pass(
                    model, drafter, known=so_far, state=last[0], hidden=last[1], cache=Cache(),
                    sampling=SAMPLING, recent=so_far, random=random, suppressed=suppressed,
                    limit=LENGTH - len(written),
                )  # fmt: skip
                written += [one.token for one in found]
                last = found[-1].state, found[-1].hidden
            counts[tuple(written)] += 1
        return np.stack([counts, exact * draws])

    return count


def chi_square(counts: np.ndarray) -> float:
    """In standard deviations above what chance gives; cells too rare are put together."""
    found, expected = counts.reshape(2, -1)
    if found[expected == 0].any():  # what cannot be written was
        return math.inf
    often = expected >= 5
    found, expected = (np.append(each[often], each[~often].sum()) for each in (found, expected))
    found, expected = found[expected > 0], expected[expected > 0]
    freedom = len(found) - 1
    assert freedom > 10
    square = float(((found - expected) ** 2 / expected).sum())
    return (square - freedom) / (2 * freedom) ** 0.5


def test_odds_are_those_of_the_model(odds: Callable[[int, int], np.ndarray]) -> None:
    assert abs(chi_square(odds(3000, 1))) < 3.5


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("is_accepted", lambda token, wanted, drawn, chance: True),
        ("is_accepted", lambda token, wanted, drawn, chance: chance < float(wanted[token])),
        ("residual", lambda wanted, drawn: wanted),
    ],
    ids=["accepts all", "accepts by p alone", "draws anew from p"],
)
def test_wrong_rules_are_noticed(
    odds: Callable[[int, int], np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    wrong: Callable[..., Any],
) -> None:
    monkeypatch.setattr(streamlm.runtime.speculation, name, wrong)
    assert chi_square(odds(2000, 2)) > 5


# -- sessions -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_drafter(tiny: Checkpoint) -> Oracle:
    """Right twice, then wrong."""
    config = DrafterConfig.of(tiny, {**SMALL, "n_tokens": 4})
    return Oracle(tiny.model, config, 2)


def fed(checkpoint: Checkpoint, text: str) -> Session:
    session = Session(checkpoint, seed=5)
    session.feed(text)
    return session


def test_greedy_sessions_write_the_same(
    tiny: Checkpoint, tiny_drafter: Oracle, prose: Callable[..., str]
) -> None:
    texts, sessions = [], []
    for drafter in (None, tiny_drafter):
        session = fed(tiny, prose(60))
        texts.append("".join(session.generate(max_tokens=70, temperature=0, drafter=drafter)))
        sessions.append(session)
    assert texts[0] == texts[1]
    plain, drafted = sessions
    assert plain.position == drafted.position
    assert_same_state(plain.state, drafted.state, tolerance=1e-3)
    # Whatever it was that wrote, a session goes on alike.
    assert drafted._live.stream.recent.tolist() == plain._live.stream.recent.tolist()


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7])
def test_no_more_is_written_than_was_asked_for(
    tiny: Checkpoint, tiny_drafter: Oracle, prose: Callable[..., str], n: int
) -> None:
    session = fed(tiny, prose(60))
    list(session.generate(max_tokens=1, seed=1, drafter=tiny_drafter))  # ends words held back
    before = session.position
    list(session.generate(max_tokens=n, seed=1, drafter=tiny_drafter))
    assert session.position == before + n


def test_dropped_halfway_it_has_what_was_given_out(
    tiny: Checkpoint, tiny_drafter: Oracle, prose: Callable[..., str]
) -> None:
    wanted = fed(tiny, prose(60))
    whole = list(wanted.generate(max_tokens=30, temperature=0, drafter=tiny_drafter))
    for stop in range(1, 8):
        session = fed(tiny, prose(60))
        pieces = session.generate(max_tokens=30, temperature=0, drafter=tiny_drafter)
        given = [next(pieces) for _ in range(stop)]
        pieces.close()  # type: ignore[attr-defined]
        given += session.generate(max_tokens=30, temperature=0)
        assert "".join(given).startswith("".join(whole))
        assert session.position <= wanted.position + stop


def test_a_stop_string_ends_within_a_pass(
    tiny: Checkpoint, tiny_drafter: Oracle, prose: Callable[..., str]
) -> None:
    whole = "".join(fed(tiny, prose(60)).generate(max_tokens=30, temperature=0))
    stop = whole[len(whole) // 2 :][:3]
    ends = []
    for drafter in (None, tiny_drafter):
        session = fed(tiny, prose(60))
        text = "".join(session.generate(stop=stop, temperature=0, drafter=drafter))
        ends.append((text, session.position))
    assert ends[0] == ends[1] and ends[0][0] == whole[: whole.find(stop)]


def test_reading_on_meanwhile_voids_the_draft(
    tiny: Checkpoint, tiny_drafter: Oracle, prose: Callable[..., str]
) -> None:
    ends = []
    for drafter in (None, tiny_drafter):
        session = fed(tiny, prose(60))
        given = []
        for index, piece in enumerate(
            session.generate(max_tokens=20, temperature=0, drafter=drafter)
        ):
            given.append(piece)
            if index in (2, 5):
                session.feed("Call me Ishmael. ")
        ends.append((given, session.position))
    assert ends[0] == ends[1]


def test_forks_made_within_a_pass_are_their_own(
    tiny: Checkpoint, tiny_drafter: Oracle, prose: Callable[..., str]
) -> None:
    session, forks = fed(tiny, prose(60)), []
    given = []
    for piece in session.generate(max_tokens=12, temperature=0, drafter=tiny_drafter):
        given.append(piece)
        forks.append(session.fork())
    for place, fork in enumerate(forks):
        written = "".join(fork.generate(max_tokens=12, temperature=0))
        assert written.startswith("".join(given[place + 1 :]))


def test_resumed_in_the_middle_it_writes_on_alike(
    open_: Callable[..., Session],
    tiny_drafter: Oracle,
    prose: Callable[..., str],
    token_log: Callable[..., list[int]],
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "drafter": tiny_drafter}
    for name in ("whole", "parts"):
        session = open_(name, seed=3)
        session.feed(prose(60))
        session.save_every = 7  # so that saves fall into passes
        list(session.generate("So", max_tokens=1, **options))
        session.save()
        list(session.generate(max_tokens=19, **options))
        session.save()
        if name == "parts":
            session.close()
            session = open_(name)
            session.save_every = 7
        list(session.generate(max_tokens=22, **options))
        session.close()
    logs = [token_log(tmp_path / f"{name}.zarr") for name in ("whole", "parts")]
    assert logs[0] == logs[1]


def test_seeds_repeat(tiny: Checkpoint, tiny_drafter: Oracle, prose: Callable[..., str]) -> None:
    session = fed(tiny, prose(60))
    texts = [
        "".join(session.fork().generate(max_tokens=30, seed=seed, drafter=tiny_drafter))
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


# -- drafters -------------------------------------------------------------------------------------


def test_saved_and_loaded_it_guesses_the_same(tiny: Checkpoint, tmp_path: Path) -> None:
    torch.manual_seed(1)
    drafter = Drafter(DrafterConfig.of(tiny, SMALL)).eval().requires_grad_(False)
    save_drafter(tmp_path / "d", drafter)
    found = load_drafter(tmp_path / "d", tiny)
    tokens = random_tokens(tiny.model, 9)
    hidden, state = advance(tiny.model, tokens[:, :-1], tiny.model.init_state(1))
    wanted = drafter(tiny.model, drafter.context(tokens, hidden, state))
    assert torch.equal(found(tiny.model, found.context(tokens, hidden, state)), wanted)
    first = found.shortened(2)
    guessed = first(tiny.model, first.context(tokens, hidden, state))
    assert torch.allclose(guessed, wanted[:, :2], atol=1e-6), "guesses see none behind them"
    with pytest.raises(ValueError, match=r"n = 4; allowed: 1 to 3"):
        found.shortened(4)


def test_drafters_that_do_not_fit(
    tiny: Checkpoint, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "d"
    drafter = Drafter(DrafterConfig.of(tiny, SMALL))
    save_drafter(folder, drafter)
    other = load_checkpoint(tiny_folder(seed=2), device="cpu")
    wanted = rf"trained for '{tiny.name}' .*, not for '{other.name}'"
    with pytest.raises(ValueError, match=wanted):
        load_drafter(folder, other)
    with pytest.raises(ValueError, match=wanted):
        Session(other).generate(drafter=drafter)
    with pytest.raises(FileNotFoundError, match=r"holds no drafter: model\.safetensors"):
        load_drafter(tmp_path, tiny)
    with pytest.raises(ValueError, match=r"config\.json is not of a drafter"):
        load_drafter(tiny_folder(), tiny)
    shutil.copy(tiny_folder() / "model.safetensors", folder)
    with pytest.raises(ValueError, match=r"does not belong to config\.json"):
        load_drafter(folder, tiny)
    with pytest.raises(ValueError, match="a drafter has no dmodel; allowed: context_len"):
        DrafterConfig.of(tiny, {"dmodel": 8})
    with pytest.raises(ValueError, match="label_len = 65; allowed: 1 to 64"):
        DrafterConfig.of(tiny, {"label_len": 65})


def test_guesses_see_only_what_is_known(tiny: Checkpoint) -> None:
    """In training too: what follows a place, or lies before a document, changes nothing there."""
    config = DrafterConfig.of(tiny, SMALL)
    torch.manual_seed(1)
    drafter = Drafter(config).eval()
    ids = random_tokens(tiny.model, 80)[0].numpy()
    changed = ids.copy()
    changed[32 + 9] = (changed[32 + 9] + 1) % tiny.model.config.vocab_size

    def at_place(tokens: np.ndarray) -> Tensor:
        corpus = Corpus(tokens, np.array([0, len(tokens)]), 1, 1)
        reader = DraftReader(tiny, config, corpus, 1)
        for _ in range(3):
            places = reader.read(lambda n: torch.tensor([[7, 8, 9]]))
        assert places is not None
        assert places.targets[0].tolist() == tokens[32 + 8 : 32 + 11].tolist()
        return drafter(tiny.model, places.context).detach()

    one, other = at_place(ids), at_place(changed)
    assert torch.equal(one[:2], other[:2])  # at place 8, token 9 is to be guessed
    assert not torch.allclose(one[2], other[2])
    # The very guesses that a session makes there.
    tokens = np.append(tiny.tokenizer.bos_id, ids[: 32 + 8]).astype(np.int64)
    read = torch.from_numpy(tokens)[None]
    hidden, state = advance(tiny.model, read[:, :-1], tiny.model.init_state(1))
    guessed = drafter(tiny.model, drafter.context(read, hidden, state))
    assert torch.allclose(guessed[0], one[0], atol=1e-4)


@pytest.fixture
def shelf(tiny: Checkpoint, prose: Callable[..., str]) -> Corpus:
    ids = [tiny.tokenizer.encode(prose(150, seed=seed)) for seed in range(4)]
    offsets = np.cumsum([0, *map(len, ids)])
    return Corpus(np.concatenate(ids), offsets, 1, 1)


def test_it_learns(tiny: Checkpoint, shelf: Corpus, tmp_path: Path) -> None:
    config = TrainConfig(steps=40, batch_size=4, learning_rate=1e-2, warmup_steps=2, eval_steps=40)
    wide = {**SMALL, "d_model": 32, "d_ff": 64}
    trainer = DraftTrainer(
        tiny, DrafterConfig.of(tiny, wide), config, train=shelf, valid=shelf, folder=tmp_path
    )
    weights = Checkpoint(tiny.model, tiny.tokenizer).fingerprints["weights"]
    before = trainer.validate()
    steps = list(trainer.run())
    # What a model of random weights says can be guessed in part, and is far from certain.
    assert all(b < a - 0.2 for a, b in zip(steps[0].losses, steps[-1].losses, strict=True))
    found = steps[-1].valid_nats
    assert found is not None and all(b < a - 0.2 for a, b in zip(before, found, strict=True))
    now = Checkpoint(tiny.model, tiny.tokenizer).fingerprints["weights"]
    assert now == weights, "the backbone stays as it is"


RECIPE = """
[data]
tokenizer = "{tokenizer}"
train = ["text.txt"]
valid = ["text.txt"]

[model]
d_model = 8
n_heads = 2
d_ff = 16

[train]
steps = 4
batch_size = 2
checkpoint_steps = 2
eval_steps = 2
eval_tokens = 100
"""


def run(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["streamlm", *map(str, arguments)])
        try:
            main()
        except SystemExit as ended:
            assert not ended.code, ended.code


def test_command_line(
    tiny_folder: Callable[..., Path],
    prose: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    model = ("--model", tiny_folder())
    Path("text.txt").write_text("\f\n".join(prose(80, seed=i) for i in range(3)), "utf-8")
    Path("recipe.toml").write_text(RECIPE.format(tokenizer=tiny_folder() / "tokenizer.model"))
    recipe = ("--recipe", "recipe.toml")
    run("draft", "train", *recipe, *model, "--out", "whole")
    told = capsys.readouterr()
    assert told.out == "whole/model\n"
    assert "step 4: " in told.err and "nats to the model's own" in told.err
    steps = [json.loads(line) for line in Path("whole/log.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [2, 4]

    def stop(trainer: DraftTrainer, rate: float, whole: Any = DraftTrainer._optimise) -> Any:
        if trainer.step == 3:
            raise KeyboardInterrupt
        return whole(trainer, rate)

    with monkeypatch.context() as patch:
        patch.setattr(DraftTrainer, "_optimise", stop)
        with pytest.raises(AssertionError, match="130"):
            run("draft", "train", *recipe, *model, "--out", "parts")
    assert "--resume continues from the last save" in capsys.readouterr().err
    with pytest.raises(AssertionError):
        run("draft", "train", *recipe, *model, "--out", "parts")
    run("draft", "train", *recipe, *model, "--out", "parts", "--resume")
    weights = [Path(each, "model", "model.safetensors").read_bytes() for each in ("whole", "parts")]
    assert weights[0] == weights[1]
    capsys.readouterr()

    run("draft", "eval", "whole/model", *model, "--data", "text.txt", "--json")
    found = json.loads(capsys.readouterr().out)
    nats = found["conditionally_independent_nats_by_offset"]
    assert len(nats) == 3 and 8 < min(nats) < max(nats) < 20 and found["positions"] > 10
    run("draft", "eval", "whole/model", *model, "--data", "text.txt")
    assert "conditionally independent likelihood" in capsys.readouterr().out

    texts = []
    for draft in ((), ("--draft", "whole/model")):
        run("generate", *model, "--prompt", "So", "--max-tokens", 30, "--temperature", 0, *draft)
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and len(texts[0]) > 5
    with pytest.raises(AssertionError):
        other = tiny_folder(seed=2)
        run("generate", "--model", other, "--max-tokens", 3, "--draft", "whole/model")
    assert "the drafter was trained for" in capsys.readouterr().err


def test_what_training_refuses(tiny: Checkpoint, shelf: Corpus, tmp_path: Path) -> None:
    data: dict[str, Any] = {"train": shelf, "valid": shelf, "folder": tmp_path}
    config = DrafterConfig.of(tiny, SMALL)
    with pytest.raises(ValueError, match="unroll = 2; allowed for a drafter: 1"):
        DraftTrainer(tiny, config, TrainConfig(unroll=2), **data)
    with pytest.raises(ValueError, match="n_tokens = 16; allowed: below segment_len = 16"):
        DraftTrainer(tiny, DrafterConfig.of(tiny, {"n_tokens": 16}), TrainConfig(), **data)
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        DraftTrainer(tiny, config, TrainConfig(), **data).resume()
