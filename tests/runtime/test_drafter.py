"""Drafters on disk, their context, their training and their commands."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from streamlm.checkpoints.checkpoint import Checkpoint, load_checkpoint
from streamlm.cli.app import main
from streamlm.runtime.drafter import (
    Drafter,
    DrafterConfig,
    load_drafter,
    save_drafter,
)
from streamlm.runtime.stream import advance
from streamlm.sessions.session import Session
from streamlm.training.config import TrainConfig
from streamlm.training.data import Corpus
from streamlm.training.drafter import DraftReader, DraftTrainer
from tests.support.drafters import SMALL
from tests.support.invariants import random_tokens


def test_a_loaded_drafter_proposes_the_same(tiny: Checkpoint, tmp_path: Path) -> None:
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


def test_mismatched_drafters_are_refused(
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


def test_drafts_depend_on_known_tokens_only(tiny: Checkpoint) -> None:
    """In training too: later tokens and earlier documents have no effect."""
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
    assert torch.equal(one[:2], other[:2])  # position 8 proposes token 9
    assert not torch.allclose(one[2], other[2])
    # The same drafts as a session's.
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


def test_training_reduces_the_loss(tiny: Checkpoint, shelf: Corpus, tmp_path: Path) -> None:
    config = TrainConfig(steps=40, batch_size=4, learning_rate=1e-2, warmup_steps=2, eval_steps=40)
    wide = {**SMALL, "d_model": 32, "d_ff": 64}
    trainer = DraftTrainer(
        tiny, DrafterConfig.of(tiny, wide), config, train=shelf, valid=shelf, folder=tmp_path
    )
    weights = Checkpoint(tiny.model, tiny.tokenizer).fingerprints["weights"]
    before = trainer.validate()
    steps = list(trainer.run())
    # The output of a model with random weights is partly predictable, and far from certain.
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
    assert "step 4: " in told.err and "nats of cross-entropy" in told.err
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


def test_training_refuses(tiny: Checkpoint, shelf: Corpus, tmp_path: Path) -> None:
    data: dict[str, Any] = {"train": shelf, "valid": shelf, "folder": tmp_path}
    config = DrafterConfig.of(tiny, SMALL)
    with pytest.raises(ValueError, match="unroll = 2; allowed for a drafter: 1"):
        DraftTrainer(tiny, config, TrainConfig(unroll=2), **data)
    with pytest.raises(ValueError, match="n_tokens = 16; allowed: below segment_len = 16"):
        DraftTrainer(tiny, DrafterConfig.of(tiny, {"n_tokens": 16}), TrainConfig(), **data)
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        DraftTrainer(tiny, config, TrainConfig(), **data).resume()


def test_a_llama_has_no_drafter(tiny_folder: Callable[..., Path]) -> None:
    """Its slots are keys and values, which a drafter does not read."""
    checkpoint = load_checkpoint(tiny_folder(head="llama"), device="cpu")
    with pytest.raises(ValueError, match="a drafter for head 'llama'; allowed: heads whose slots"):
        DrafterConfig.of(checkpoint, {})
