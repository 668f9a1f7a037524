"""Llama-family models beside `transformers`, through its own checkpoints and through GGUF files.

Windows are larger than the texts, so that nothing is forgotten and both compute the same.
"""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from streamlm.checkpoints.checkpoint import load_model
from streamlm.models.base import Model
from streamlm.models.layers.rotary import inverse_frequencies
from tests.parity.peers import Compare, peer
from tests.support.invariants import read
from tests.support.pretrained import LLAMA31, SHAPES, settings, weights, write_gguf

transformers = peer("transformers", "transformers 5")
pytestmark = pytest.mark.filterwarnings("ignore")

TOLERANCE = 1e-4
N = 150
WHOLE = {"segment_len": 256, "memory_len": 0, "compressed_len": 0, "pinned_len": 0}
# Segments that are closed, and that memory holds: older keys come from slots.
CLOSED = {"segment_len": 16, "memory_len": 240, "compressed_len": 0, "pinned_len": 0}
# The first tokens are pinned and the others in memory: numbered as if nothing had left it.
PINNED = {"segment_len": 16, "memory_len": 144, "compressed_len": 0, "pinned_len": 4}
WINDOWS = {"one segment": WHOLE, "closed segments": CLOSED, "pinned": PINNED}


def peer_model(shape: str, **options: Any) -> Any:
    """A random model of theirs."""
    values = settings(shape, **options)
    kind = values.pop("architectures")[0]
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    config._attn_implementation = "eager"
    model = getattr(transformers, kind)(config).eval()
    random = weights(settings(shape, **options))
    missing, unknown = model.load_state_dict(random, strict=False)
    assert not unknown and set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model


def tokens_for(model: Any) -> Tensor:
    random = torch.Generator().manual_seed(4)
    return torch.randint(0, model.config.vocab_size, (2, N), generator=random)


def wanted_logits(model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(tokens).logits
    assert found.std() > 0.1  # the text has an effect
    return found


def logits(model: Model, tokens: Tensor, sizes: list[int] | None = None) -> Tensor:
    with torch.no_grad():
        return read(model, tokens, model.init_state(len(tokens)), sizes=sizes)[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_logits(shape: str, tmp_path: Path, compare: Compare) -> None:
    """Whole, token by token, and in irregular calls."""
    theirs = peer_model(shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.save_pretrained(tmp_path)
    tokens = tokens_for(theirs)
    wanted = wanted_logits(theirs, tokens)
    for name, windows in WINDOWS.items():
        ours = load_model(
            tmp_path, device="cpu", dtype=None, settings={**windows, "slots": "weights"}
        )
        compare(f"{shape}, {name}", logits(ours, tokens), wanted, tolerance=TOLERANCE)
        one = logits(ours, tokens, [1] * N)
        compare(f"{shape}, {name}, token by token", one, wanted, tolerance=TOLERANCE)
        irregular = logits(ours, tokens, [7, 1, 40, 3, 64, 2, 33])
        compare(f"{shape}, {name}, irregular", irregular, wanted, tolerance=TOLERANCE)


def test_steps_of_theirs(tmp_path: Path, compare: Compare) -> None:
    """Their cache beside ours, one token at a time."""
    theirs = peer_model("llama, untied")
    theirs.save_pretrained(tmp_path)
    tokens, cache, found = tokens_for(theirs)[:, :40], None, []
    with torch.no_grad():
        for at in range(40):
            out = theirs(tokens[:, at : at + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            found.append(out.logits)
    ours = load_model(tmp_path, device="cpu", dtype=None, settings={**CLOSED, "slots": "weights"})
    one = logits(ours, tokens, [1] * 40)
    compare("steps of both", one, torch.cat(found, dim=1), tolerance=TOLERANCE)


@pytest.mark.parametrize("shards", ["40KB", "200KB"])
def test_shards_of_theirs(shards: str, tmp_path: Path, compare: Compare) -> None:
    theirs = peer_model("qwen3, untied")
    theirs.save_pretrained(tmp_path, max_shard_size=shards)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    tokens = tokens_for(theirs)
    ours = load_model(tmp_path, device="cpu", dtype=None, settings={**WHOLE, "slots": "weights"})
    wanted = wanted_logits(theirs, tokens)
    compare("shards", logits(ours, tokens), wanted, tolerance=TOLERANCE)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "llama 3.1"])
def test_gguf_files(shape: str, tmp_path: Path, compare: Compare) -> None:
    """F32 files give the logits of the checkpoint that they were made from."""
    values = settings(shape)
    path = write_gguf(tmp_path / "model.gguf", values, weights(values))
    theirs = peer_model(shape)
    tokens = tokens_for(theirs)
    ours = load_model(path, device="cpu", dtype=None, settings={**CLOSED, "slots": "weights"})
    wanted = wanted_logits(theirs, tokens)
    compare(f"GGUF, {shape}", logits(ours, tokens), wanted, tolerance=TOLERANCE)


def test_gguf_files_of_llama_3_1(tmp_path: Path, compare: Compare) -> None:
    """Their scaling is a table of factors."""
    options = {"rope_scaling": LLAMA31, "rope_theta": 500000.0, "max_position_embeddings": 16384}
    values = settings(**options)
    plain, _ = inverse_frequencies(16, 500000.0, {})
    scaled, _ = inverse_frequencies(16, 500000.0, LLAMA31)
    path = tmp_path / "model.gguf"
    write_gguf(path, values, weights(values), wavelengths=(plain / scaled).numpy())
    theirs = peer_model("llama", **options)
    tokens = tokens_for(theirs)
    ours = load_model(path, device="cpu", dtype=None, settings={**CLOSED, "slots": "weights"})
    wanted = wanted_logits(theirs, tokens)
    compare("GGUF, llama 3.1", logits(ours, tokens), wanted, tolerance=TOLERANCE)


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("shape", ["llama", "qwen2", "qwen3, untied"])
def test_gguf_files_as_theirs(shape: str, kind: str, tmp_path: Path, compare: Compare) -> None:
    """The peer reads GGUF files as well, and reorders rows by code of its own.

    It takes heads of Qwen 3 to be 128 wide, whatever the file says.
    """
    values = settings(shape, **({"head_dim": 128} if shape.startswith("qwen3") else {}))
    path = write_gguf(tmp_path / "model.gguf", values, weights(values), kind=kind)
    kept = {"gguf_file": path.name, "dtype": torch.float32, "attn_implementation": "eager"}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, **kept).eval()
    given = {"device": "cpu", "dtype": torch.float32}
    ours = load_model(path, settings={**CLOSED, "slots": "weights"}, **given)  # type: ignore[arg-type]
    tokens = tokens_for(theirs)
    wanted = wanted_logits(theirs, tokens)
    compare(f"GGUF as theirs, {shape}, {kind}", logits(ours, tokens), wanted, tolerance=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, tmp_path: Path, compare: Compare) -> None:
    """Both round, in different places."""
    theirs = peer_model("llama").to(dtype)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path, device="cpu", dtype=None, settings={**CLOSED, "slots": "weights"})
    assert {weight.dtype for weight in ours.parameters()} == {dtype}
    tokens = tokens_for(theirs)
    wanted, found = wanted_logits(theirs, tokens).float(), logits(ours, tokens).float()
    scale = 8 * torch.finfo(dtype).eps * float(wanted.abs().max())
    compare(f"{dtype}".removeprefix("torch."), found, wanted, tolerance=scale)
