"""GGUF files: every type of tensor, both orders of rows, and what is refused."""

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamlm.checkpoints.checkpoint import load_checkpoint, load_model
from streamlm.checkpoints.gguf_header import TYPES, read_header
from streamlm.checkpoints.huggingface_config import llama_config
from streamlm.checkpoints.llama_tensors import their_name
from streamlm.checkpoints.sources import find_model
from streamlm.models.layers.rotary import inverse_frequencies
from tests.support.pretrained import (
    LLAMA31,
    SHAPES,
    gguf_metadata,
    gguf_text,
    raw_gguf,
    settings,
    weights,
    write_gguf,
    write_huggingface,
)

gguf = pytest.importorskip("gguf")
Write = Callable[..., Path]
# Kinds that the package can write; it reads the others, too.
WRITTEN = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
IN_GGUF = [shape for shape in SHAPES if shape != "llama 3.1"]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file of a shape."""

    def write(shape: str = "llama", *, options: dict[str, Any] | None = None, **how: Any) -> Path:
        values = settings(shape, **(options or {}))
        return write_gguf(tmp_path / "model.gguf", values, weights(values), **how)

    return write


# -- what is loaded -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", IN_GGUF)
def test_a_file_is_the_model_that_it_was_made_from(write: Write, shape: str) -> None:
    values = settings(shape)
    stored = find_model(write(shape))
    assert stored.config == llama_config(values)
    model, wanted = stored.load_model(torch.device("cpu"), "auto"), weights(values)
    assert len(model.state_dict()) == len(wanted)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, wanted[their_name(name, "huggingface")]), name


@pytest.mark.parametrize("kind", WRITTEN)
def test_numbers_are_those_of_the_package(write: Write, kind: str) -> None:
    """Compared with what it makes of the matrices before rows are interleaved."""
    from gguf.quants import dequantize, quantize

    numbers = gguf.GGMLQuantizationType[kind]
    model = load_model(write(kind=kind), device="cpu", dtype=torch.float32)
    for name, given in weights(settings()).items():
        ours = next(n for n in model.state_dict() if their_name(n, "huggingface") == name)
        wanted = given
        if given.ndim == 2:
            wanted = torch.from_numpy(dequantize(quantize(given.numpy(), numbers), numbers))
        assert torch.equal(model.state_dict()[ours], wanted), name


@pytest.mark.parametrize(("code", "kind"), [(code, kind) for code, (kind, _, _) in TYPES.items()])
def test_every_type_is_read_block_by_block(tmp_path: Path, code: int, kind: str) -> None:
    """Random blocks of every type, with scales that are numbers, in several steps."""
    from gguf.quants import dequantize

    from streamlm.checkpoints.gguf import _stored

    _, numbers, n_bytes = TYPES[code]
    rows, width = 37, 512
    random = np.random.default_rng(code)
    data = random.integers(0, 256, (rows, width // numbers * n_bytes), dtype=np.uint8)
    if numbers == 1:
        values = torch.from_numpy(random.standard_normal((rows, width)).astype(np.float32))
        dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
        data = values.to(dtype).view(torch.uint8).numpy()
    else:  # float16 scales anywhere in a block: no infinities, no NaN
        data &= np.where(data % 4 == 3, 0x3B, 0xBB).astype(np.uint8)
    path = tmp_path / "a.gguf"
    path.write_bytes(raw_gguf(tensors=[(b"a", (width, rows), code, 0)], data=data.tobytes()))
    place = read_header(path).tensors["a"]
    assert place.shape == (rows, width)
    found = _stored(path, "a", place).load(torch.float32)
    wanted = dequantize(data, gguf.GGMLQuantizationType[kind])
    assert np.isfinite(wanted).all()
    assert np.array_equal(found.numpy(), wanted.reshape(rows, width))


def test_steps_do_not_change_numbers(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(kind="Q4_1")
    whole = load_model(path, device="cpu", dtype=None).state_dict()
    monkeypatch.setattr("streamlm.checkpoints.gguf.NUMBERS", 200)
    for name, weight in load_model(path, device="cpu", dtype=None).state_dict().items():
        assert torch.equal(weight, whole[name]), name


@pytest.mark.parametrize(
    ("kind", "own"),
    [("F16", torch.float16), ("BF16", torch.bfloat16), ("Q4_0", torch.float32)],
)
def test_precision_is_that_of_the_file_unless_another_is_wanted(
    write: Write, kind: str, own: torch.dtype
) -> None:
    path = write(kind=kind)
    for wanted in (None, torch.float32, torch.bfloat16):
        model = load_model(path, device="cpu", dtype=wanted)
        expected = wanted if isinstance(wanted, torch.dtype) else own
        assert {weight.dtype for weight in model.parameters()} == {expected}
    exact = load_model(path, device="cpu", dtype=torch.float32).state_dict()
    for name, weight in load_model(path, device="cpu", dtype=torch.bfloat16).state_dict().items():
        assert torch.equal(weight, exact[name].bfloat16()), name


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_plain_weights_are_memory_mapped(write: Write, kind: str) -> None:
    """All but norms of another precision, and rows that must be reordered."""
    path = write(kind=kind, options={"vocab_size": 9000})
    model, mapped = load_model(path, device="cpu", dtype=None), []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(path.resolve())):
            start, _, stop = line.split()[0].partition("-")
            mapped.append((int(start, 16), int(stop, 16)))
    for name, weight in model.named_parameters():
        there = any(start <= weight.data_ptr() < stop for start, stop in mapped)
        reordered = ".query." in name or ".key." in name
        assert there == (not reordered and (weight.ndim == 2 or kind == "F32")), name


def test_weights_do_not_change_the_file(write: Write) -> None:
    path = write()
    before = path.read_bytes()
    model = load_model(path, device="cpu", dtype=None)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert path.read_bytes() == before


def test_a_file_reads_text_as_the_folder_does(write: Write, tmp_path: Path) -> None:
    values = settings()
    folder = write_huggingface(tmp_path / "folder", values, weights(values))
    one, other = (
        load_checkpoint(write(), device="cpu"),
        load_checkpoint(folder, device="cpu"),
    )
    text = "It was a dark and stormy night; the rain fell in torrents."
    assert one.tokenizer.encode(text).tolist() == other.tokenizer.encode(text).tolist()
    assert one.name == "model"
    assert one.fingerprints["architecture"] == other.fingerprints["architecture"]


def test_the_scaling_of_llama_3_1_is_recognised(write: Write) -> None:
    values = settings(rope_scaling=LLAMA31, rope_theta=500000.0, head_dim=128)
    plain, _ = inverse_frequencies(128, 500000.0, {})
    scaled, _ = inverse_frequencies(128, 500000.0, LLAMA31)
    table = (plain / scaled).numpy()
    how = {"options": values, "metadata": gguf_metadata({**values, "rope_scaling": None})}
    found = find_model(write(wavelengths=table, **how))
    assert found.config == llama_config(values)
    for wrong in (table * 1.1, table[:-1], np.full_like(table, np.nan), np.ones_like(table)):
        with pytest.raises(ValueError, match=r"rope_freqs\.weight holds factors .* not known"):
            find_model(write(wavelengths=wrong, **how))


def test_folders_with_one_file_are_read(write: Write, tmp_path: Path) -> None:
    assert find_model(write().parent).path == tmp_path / "model.gguf"
    os.link(tmp_path / "model.gguf", tmp_path / "other.gguf")
    with pytest.raises(ValueError, match=r"holds 2 models; allowed: one of model\.gguf, other"):
        find_model(tmp_path)


# -- what is refused ------------------------------------------------------------------------------

UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"general.architecture": "gemma"}, "architecture = 'gemma'; allowed: 'llama'"),
    "MoE": ({"llama.expert_count": 8}, r"llama\.expert_count = 8; allowed: 0"),
    "window": ({"llama.attention.sliding_window": 4096}, "sliding_window = 4096; allowed: 0"),
    "not causal": ({"llama.attention.causal": False}, r"attention\.causal = False; allowed: True"),
    "soft cap": ({"llama.final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0"),
    "half rotated": ({"llama.rope.dimension_count": 8}, r"rope\.dimension_count = 8; allowed: 16"),
    "value width": ({"llama.attention.value_length": 8}, "value_length = 8; allowed: 16"),
    "longrope": ({"llama.rope.scaling.type": "longrope"}, r"scaling\.type = 'longrope'; allowed"),
    "no factor": ({"llama.rope.scaling.type": "yarn"}, r"rope\.scaling\.factor = None"),
    "head counts": ({"llama.attention.head_count_kv": [2, 1]}, "head_count_kv = "),
    "a text for a number": ({"llama.block_count": "2"}, "block_count = '2'; allowed: an integer"),
    "no layers": ({"llama.block_count": 0}, "block_count = 0; allowed: an integer of at least 1"),
    "a billion layers": ({"llama.block_count": 10**9}, "1,000,000,000 layers, but 20 tensors"),
    "no epsilon": ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "epsilon = nan"),
    "base": ({"llama.rope.freq_base": -1.0}, r"freq_base = -1\.0; allowed: a number above 0"),
    "alignment": ({"general.alignment": 24}, r"alignment = 24; allowed: 8, 16, 32"),
    "vocabulary": ({"llama.vocab_size": 927}, r"of another shape: token_embd\.weight \[928, 64\]"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported_models_are_refused(write: Write, case: str) -> None:
    changes, message = UNSUPPORTED[case]
    facts = gguf_metadata(settings()) | changes
    path = write(metadata=facts)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(path, device="cpu")


@pytest.mark.parametrize("name", ["block_count", "embedding_length", "context_length"])
def test_missing_settings_are_named(write: Write, name: str) -> None:
    facts = {key: v for key, v in gguf_metadata(settings()).items() if not key.endswith(name)}
    with pytest.raises(ValueError, match=f"{name} = None; allowed: an integer"):
        load_checkpoint(write(metadata=facts), device="cpu")


def test_one_head_count_for_each_layer_is_read(write: Write) -> None:
    facts = gguf_metadata(settings()) | {"llama.attention.head_count_kv": [2, 2]}
    assert find_model(write(metadata=facts)).config == llama_config(settings())


def test_missing_and_unknown_tensors_are_named(tmp_path: Path) -> None:
    values = settings()
    given = weights(values)
    facts = gguf_metadata(values)
    less = {name: w for name, w in given.items() if "mlp.up" not in name}
    with pytest.raises(ValueError, match=r"missing: blk\.0\.ffn_up\.weight, blk\.1\.ffn_up"):
        find_model(write_gguf(tmp_path / "less.gguf", values, less))
    bias = {"model.layers.0.self_attn.o_proj.bias": torch.zeros(64)}
    with pytest.raises(ValueError, match=r"unknown: blk\.0\.attn_output\.bias"):
        find_model(write_gguf(tmp_path / "bias.gguf", values, {**given, **bias}))
    with pytest.raises(ValueError, match=r"missing: .*attn_k\.bias"):  # those of Qwen 2
        qwen = {name.replace("llama.", "qwen2."): value for name, value in facts.items()}
        qwen["general.architecture"] = "qwen2"
        find_model(write_gguf(tmp_path / "qwen.gguf", values, given, metadata=qwen))


def test_vocabularies_of_another_size_are_refused(write: Write) -> None:
    facts = {name: v for name, v in gguf_metadata(settings()).items() if name != "llama.vocab_size"}
    with pytest.raises(ValueError, match=r"of another shape: token_embd\.weight \[928, 64\] inst"):
        load_checkpoint(write(metadata=facts), device="cpu")  # 665 tokens are listed
    path = write(options={"vocab_size": 600})
    with pytest.raises(ValueError, match=r"has 665 tokens, the model's vocab_size is 600"):
        load_checkpoint(path, device="cpu")


BROKEN_TOKENIZERS: dict[str, dict[str, Any]] = {
    "kind": {"tokenizer.ggml.model": "t5"},
    "pattern": {"tokenizer.ggml.pre": "unheard-of"},
    "merges": {"tokenizer.ggml.merges": [1, 2, 3]},
    "types": {"tokenizer.ggml.token_type": [1]},
    "tokens": {"tokenizer.ggml.tokens": [1] * 665},
    "end": {"tokenizer.ggml.eos_token_id": 4096},
    "template": {"tokenizer.chat_template": 7},
}


@pytest.mark.parametrize("case", BROKEN_TOKENIZERS)
def test_damaged_tokenizers_are_refused(write: Write, case: str) -> None:
    path = write(metadata=gguf_metadata(settings()) | BROKEN_TOKENIZERS[case])
    with pytest.raises(ValueError, match=str(path)):
        load_checkpoint(path, device="cpu")


HUGE = 1 << 63
TENSOR = (b"a", (32, 4), 0, 0)
STRING, ARRAY, U32 = 8, 9, 4


def array(code: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<IQ", code, count) + data


HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing else": (b"GGUF", "lie beyond the end"),
    "version 1": (raw_gguf(version=1), "version 1; allowed: 2 or 3"),
    "big-endian": (raw_gguf(version=3 << 24), "little-endian"),
    "tensors": (raw_gguf(n_tensors=HUGE), r"9,223,372,036,854,775,808 tensors; allowed: at most"),
    "fields": (raw_gguf(n_fields=HUGE), r"9,223,372,036,854,775,808 fields; allowed: at most"),
    "fewer fields": (raw_gguf(n_fields=60_000), "lie beyond the end"),
    "fewer tensors": (raw_gguf(n_tensors=60_000), "lie beyond the end"),
    "name": (raw_gguf(n_fields=1)[:24] + gguf_text(b"a", length=HUGE), "a name of"),
    "long name": (raw_gguf(fields=[(b"a" * 70_000, U32, b"1234")]), "a name of 70,000 bytes"),
    "text": (raw_gguf(fields=[(b"a", STRING, gguf_text(b"a", length=HUGE))]), "lie beyond"),
    "no UTF-8": (raw_gguf(fields=[(b"a", STRING, gguf_text(b"\xff\xff"))]), "can't decode"),
    "type": (raw_gguf(fields=[(b"a", 99, b"")]), "field 'a' is of type 99"),
    "array": (raw_gguf(fields=[(b"a", ARRAY, array(U32, HUGE))]), "arrays of .* elements; allowed"),
    "array of text": (raw_gguf(fields=[(b"a", ARRAY, array(STRING, HUGE))]), "elements; allowed"),
    "shorter array": (raw_gguf(fields=[(b"a", ARRAY, array(U32, 1 << 20))]), "lie beyond the end"),
    "shorter texts": (raw_gguf(fields=[(b"a", ARRAY, array(STRING, 1 << 20))]), "beyond|a name"),
    "arrays of arrays": (raw_gguf(fields=[(b"a", ARRAY, array(ARRAY, 1))]), "is of type 9"),
    "field twice": (raw_gguf(fields=[(b"a", U32, b"1234")] * 2), "field 'a' stands twice"),
    "tensor twice": (raw_gguf(tensors=[TENSOR] * 2, data=bytes(512)), "tensor 'a' stands twice"),
    "dimensions": (raw_gguf(tensors=[(b"a", (1,) * 5, 0, 0)]), "has 5 dimensions; allowed: 1 to 4"),
    "no dimensions": (raw_gguf(tensors=[(b"a", (), 0, 0)]), "has 0 dimensions"),
    "shape": (raw_gguf(tensors=[(b"a", (1 << 62, 1 << 62), 0, 0)]), "has [0-9,]+ bytes at"),
    "empty": (raw_gguf(tensors=[(b"a", (32, 0), 0, 0)]), "has 0 bytes at"),
    "offset": (raw_gguf(tensors=[(b"a", (32, 4), 0, 1 << 60)], data=bytes(512)), "bytes at"),
    "unaligned": (raw_gguf(tensors=[(b"a", (32,), 0, 4)], data=bytes(512)), "not aligned to 32"),
    "short": (raw_gguf(tensors=[TENSOR], data=bytes(511)), "has 512 bytes at"),
    "overlap": (
        raw_gguf(tensors=[TENSOR, (b"b", (32,), 0, 32)], data=bytes(512)),
        "tensors 'a' and 'b' overlap",
    ),
    "rows": (
        raw_gguf(tensors=[(b"a", (31, 4), 2, 0)], data=bytes(512)),
        "rows of 31 numbers in",
    ),
    "IQ2": (raw_gguf(tensors=[(b"a", (256,), 16, 0)], data=bytes(512)), "is of type IQ2_XXS; allo"),
    "code": (raw_gguf(tensors=[(b"a", (256,), 77, 0)], data=bytes(512)), "is of type number 77"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_lying_headers_are_refused(tmp_path: Path, case: str) -> None:
    data, message = HOSTILE[case]
    path = tmp_path / "a.gguf"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"a\.gguf is damaged: .*({message})"):
        read_header(path)


def test_files_may_be_cut_anywhere(write: Write) -> None:
    """Never anything but a ValueError, wherever a header ends."""
    path = write()
    data = path.read_bytes()
    start = min(place.offset for place in read_header(path).tensors.values())
    cuts = {*range(4, start, max(1, start // 300)), start, len(data) - 1}
    for cut in sorted(cuts):
        path.write_bytes(data[:cut])
        with pytest.raises(ValueError, match=r"model\.gguf is damaged"):
            find_model(path)


def test_any_byte_may_be_wrong(write: Write) -> None:
    """A header with a byte changed is read or refused with a ValueError."""
    path = write()
    data = path.read_bytes()
    start = min(place.offset for place in read_header(path).tensors.values())
    random = np.random.default_rng(5)
    vocabulary = data.index(b"tokenizer.ggml.tokens")
    at = [*range(4, min(start, vocabulary)), *random.integers(vocabulary, start, 200)]
    for position in random.permutation(at)[:600].tolist():
        changed = bytearray(data)
        changed[position] ^= 1 << int(random.integers(0, 8))
        path.write_bytes(changed)
        try:
            find_model(path)
        except ValueError as error:
            assert str(path) in str(error)


def test_headers_of_huge_files_are_bounded(tmp_path: Path) -> None:
    """Arrays that are longer than a header may be, in a file that is large enough for them."""
    path = tmp_path / "a.gguf"
    text = gguf_text(b"", length=1 << 33)
    path.write_bytes(raw_gguf(fields=[(b"a", STRING, text)]))
    with open(path, "r+b") as file:
        file.truncate(1 << 34)  # a hole: no disk is used
    with pytest.raises(ValueError, match="lie beyond the end of a header of 134,217,728 bytes"):
        read_header(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    for data in (b"", b"GGU", b"ggml" * 9):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="is no GGUF file: it does not begin with b'GGUF'"):
            load_checkpoint(path, device="cpu")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises((ValueError, FileNotFoundError), match="no checkpoint at"):
        load_checkpoint(path, device="cpu")
