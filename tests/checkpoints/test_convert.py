"""Converted Transformer-XL: which tensor becomes which, and what is refused.

The names and shapes of the sources are written out here, as their models have them. That what is
converted also computes the same is shown by `tests/parity`, beside the models themselves.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from streamlm.checkpoints.checkpoint import load_model
from streamlm.checkpoints.transfo_xl import (
    convert_transfo_xl,
    convert_weights,
    ties,
    transfo_xl_config,
    weight_map,
)
from streamlm.cli.app import app
from streamlm.models.transformer_xl import TransformerXL

# Shapes of wt103, scaled down: 22 words, three cutoffs, embeddings as wide as the model.
SMALL: dict[str, Any] = {
    **{"vocab_size": 22, "cutoffs": [6, 11, 16], "div_val": 2, "d_model": 16, "d_embed": 16},
    **{"n_layer": 2, "n_head": 2, "d_head": 5, "d_inner": 20, "mem_len": 9, "tgt_len": 4},
    **{"clamp_len": 7, "untie_r": True, "pre_lnorm": False, "attn_type": 0, "same_length": True},
    **{"dropout": 0.1, "dropatt": 0.0, "init_std": 0.02, "layer_norm_epsilon": 1e-5},
}
KINDS: dict[str, dict[str, Any]] = {
    "div 1": {"div_val": 1},
    "div 1, narrow": {"div_val": 1, "d_embed": 12},
    "div 2": {},
    "div 2, narrow": {"d_embed": 12},
    "div 4": {"div_val": 4, "d_model": 64, "d_embed": 64},
    "shared biases": {"untie_r": False},
    "pre-norm": {"pre_lnorm": True},
    "no cutoffs": {"cutoffs": [], "div_val": 1},
}


def source(values: Mapping[str, Any], *, original: bool = False) -> dict[str, Tensor]:
    """A random state dict with the names of the source, including aliases."""
    random = torch.Generator().manual_seed(4)
    prefix = "" if original else "transformer."
    width, wide, inner = values["d_model"], values["d_embed"], values["n_head"] * values["d_head"]
    found: dict[str, Tensor] = {}

    def add(name: str, *shape: int) -> None:
        noise = torch.randn(shape, generator=random) / shape[-1] ** 0.5
        found[name] = 1 + 0.2 * noise if name.endswith("norm.weight") else noise

    ends = [0, *values["cutoffs"], values["vocab_size"]]
    sizes = [stop - start for start, stop in pairwise(ends)]
    div, n_bins = values["div_val"], len(sizes)
    widths = [wide // div**i for i in range(n_bins)]
    if div == 1:
        sizes, widths = [values["vocab_size"]], [wide]
    for i, (n, d) in enumerate(zip(sizes, widths, strict=True)):
        add(f"{prefix}word_emb.emb_layers.{i}.weight", n, d)
        add(f"crit.out_layers.{i}.bias", n)
        found[f"crit.out_layers.{i}.weight"] = found[f"{prefix}word_emb.emb_layers.{i}.weight"]
        if div > 1 or wide != width:
            add(f"{prefix}word_emb.emb_projs.{i}", width, d)
    if div > 1 or wide != width:
        add("crit.out_projs.0", width, wide)
        for i in range(1, n_bins):
            own = 0 if div == 1 else i
            found[f"crit.out_projs.{i}"] = found[f"{prefix}word_emb.emb_projs.{own}"]
    if n_bins > 1:
        add("crit.cluster_weight", n_bins - 1, wide)
        add("crit.cluster_bias", n_bins - 1)
    shared = original or not values["untie_r"]
    for kind in ("r_w_bias", "r_r_bias"):
        if shared:
            add(f"{prefix}{kind}", values["n_head"], values["d_head"])
    for index in range(values["n_layer"]):
        layer = f"{prefix}layers.{index}"
        for kind in ("r_w_bias", "r_r_bias"):
            if not shared:
                add(f"{layer}.dec_attn.{kind}", values["n_head"], values["d_head"])
            elif not original:
                found[f"{layer}.dec_attn.{kind}"] = found[f"{prefix}{kind}"]
        add(f"{layer}.dec_attn.qkv_net.weight", 3 * inner, width)
        add(f"{layer}.dec_attn.r_net.weight", inner, width)
        add(f"{layer}.dec_attn.o_net.weight", width, inner)
        add(f"{layer}.pos_ff.CoreNet.0.weight", values["d_inner"], width)
        add(f"{layer}.pos_ff.CoreNet.0.bias", values["d_inner"])
        add(f"{layer}.pos_ff.CoreNet.3.weight", width, values["d_inner"])
        add(f"{layer}.pos_ff.CoreNet.3.bias", width)
        for norm in ("dec_attn.layer_norm", "pos_ff.layer_norm"):
            add(f"{layer}.{norm}.weight", width)
            add(f"{layer}.{norm}.bias", width)
    rates = 1 / 10000 ** (torch.arange(0.0, width, 2.0) / width)
    return {**found, f"{prefix}pos_emb.inv_freq": rates}


def output(model: TransformerXL, theirs: Mapping[str, Tensor], *, original: bool) -> Tensor:
    """Outputs for a stream longer than memory, with the converted weights."""
    model.load_state_dict(convert_weights(theirs, model.config, original=original))
    state, found = model.init_state(1), []
    with torch.no_grad():
        for piece in (torch.arange(16)[None] * 7 % model.config.vocab_size).split(4, dim=1):
            logits, state = model(piece, state)
            state, _ = model.commit(state)
            found.append(logits)
    return torch.cat(found, dim=1)


def write(folder: Path, theirs: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    torch.save(OrderedDict(theirs), folder / "pytorch_model.bin")


# -- the map ----------------------------------------------------------------------------------


@pytest.mark.parametrize("original", [False, True], ids=["hugging face", "original"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_tensor_is_used_or_tied(kind: dict[str, Any], original: bool) -> None:
    """The map covers exactly the source tensors and exactly the model's tensors."""
    values = {**SMALL, **kind}
    theirs, config = source(values, original=original), transfo_xl_config(values, original=original)
    sources = weight_map(config, original=original)
    used = {name for one in sources.values() for name in one.names}
    second = ties(config, original=original)
    assert not used & set(second)
    assert used | set(second) == {name for name in theirs if not name.endswith("inv_freq")}
    made = convert_weights(theirs, config, original=original)
    wanted = {name: weight.shape for name, weight in TransformerXL(config).state_dict().items()}
    assert {name: weight.shape for name, weight in made.items()} == wanted
    assert sum(weight.numel() for weight in made.values()) == sum(
        theirs[name].numel() for name in used
    )


@pytest.mark.parametrize(
    ("kind", "original"),
    [*((kind, False) for kind in KINDS), ("div 1", True), ("div 2", True), ("no cutoffs", True)],
)
def test_every_tensor_has_an_effect(kind: str, original: bool) -> None:
    """Changing a tensor changes the output; changing only an alias is refused."""
    values = {**SMALL, **KINDS[kind]}
    theirs = source(values, original=original)
    config = transfo_xl_config(values, original=original)
    model = TransformerXL(config).eval()
    before = output(model, theirs, original=original)
    second = ties(config, original=original)
    random = torch.Generator().manual_seed(5)
    for name in theirs:
        noise = torch.randn(theirs[name].shape, generator=random)
        changed = {**theirs, name: theirs[name] + 0.1 * noise}
        if name in second or name.endswith("inv_freq"):
            with pytest.raises(ValueError, match=f"wrong values: {re.escape(name)}"):
                convert_weights(changed, config, original=original)
            continue
        changed |= {other: changed[name] for other, first in second.items() if first == name}
        after = output(model, changed, original=original)
        assert float((after - before).abs().max()) > 1e-5, name


def test_aliases_may_be_absent_or_replace_the_canonical_name() -> None:
    values = {**SMALL, "untie_r": False}
    theirs, config = source(values), transfo_xl_config(values)
    second = ties(config)
    wanted = convert_weights(theirs, config)
    alone = {name: weight for name, weight in theirs.items() if name not in second}
    firsts = {first for _, first in second.items()}
    others = {name: weight for name, weight in theirs.items() if name not in firsts}
    for given in (alone, others):
        made = convert_weights(given, config)
        assert all(torch.equal(made[name], wanted[name]) for name in wanted)


def test_cluster_rows_of_the_original_code_are_reversed() -> None:
    theirs = source(SMALL)
    original = source(SMALL, original=True)
    made = [
        convert_weights(given, transfo_xl_config(SMALL, original=flag), original=flag)
        for given, flag in ((theirs, False), (original, True))
    ]
    for name in ("cluster_weight", "cluster_bias"):
        assert torch.equal(made[0][f"embedding.{name}"], theirs[f"crit.{name}"])
        assert torch.equal(made[1][f"embedding.{name}"], original[f"crit.{name}"].flip(0))
    assert made[1]["content_bias"].shape == (1, 2, 5)


def test_state_dicts_of_the_original_code_give_the_same_model() -> None:
    """Both sets of names give equal weights for a model with shared biases."""
    values = {**SMALL, "untie_r": False}
    theirs = source(values)
    original = {
        name.removeprefix("transformer."): weight.flip(0) if "cluster" in name else weight
        for name, weight in theirs.items()
        if not re.search(r"layers\.\d+\.dec_attn\.r_._bias", name)
    }
    assert original.keys() == source(SMALL, original=True).keys()
    model = TransformerXL(transfo_xl_config(values)).eval()
    wanted = output(model, theirs, original=False)
    assert torch.equal(output(model, original, original=True), wanted)


def test_missing_and_unknown_tensors_are_listed() -> None:
    theirs, config = source(SMALL), transfo_xl_config(SMALL)
    del theirs["transformer.layers.1.dec_attn.r_net.weight"], theirs["crit.cluster_bias"]
    theirs["transformer.layers.2.dec_attn.r_net.weight"] = torch.zeros(1)
    with pytest.raises(
        ValueError,
        match=r"missing: crit\.cluster_bias, transformer\.layers\.1\.dec_attn\.r_net\.weight; "
        r"unknown: transformer\.layers\.2\.dec_attn\.r_net\.weight$",
    ):
        convert_weights(theirs, config)


# -- the configuration ------------------------------------------------------------------------


def test_settings() -> None:
    config = transfo_xl_config({**SMALL, "d_embed": 12, "dropatt": 0.2})
    assert (config.vocab_size, config.n_layers, config.d_model, config.d_ff) == (22, 2, 16, 20)
    assert (config.n_heads, config.head_dim, config.embed_dim, config.div_val) == (2, 5, 12, 2)
    assert (config.segment_len, config.memory_len, config.compressed_len) == (4, 9, 0)
    assert (config.clamp_len, config.cutoffs, config.norm) == (7, (6, 11, 16), "post")
    assert (config.dropout, config.attention_dropout, config.shared_bias) == (0.1, 0.2, False)
    assert transfo_xl_config({**SMALL, "clamp_len": -1}).clamp_len == 0
    without = {name: value for name, value in SMALL.items() if name != "tgt_len"}
    assert transfo_xl_config(without).segment_len == 128
    assert transfo_xl_config(SMALL, original=True).shared_bias


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attn_type": 2}, "attn_type = 2; allowed: 0"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon = 1e-06; allowed: 1e-05"),
        ({"cutoffs": [], "div_val": 1, "d_embed": 12}, "d_embed without cutoffs = 12; allowed: 16"),
        ({"n_head": None}, "n_heads = None; allowed: a value of type int"),
        ({"cutoffs": 3}, "cutoffs = 3; allowed: a value of type tuple"),
    ],
)
def test_unsupported_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        transfo_xl_config({**SMALL, **change})
    with pytest.raises(ValueError, match=r"^the configuration lacks vocab_size, mem_len$"):
        transfo_xl_config({k: v for k, v in SMALL.items() if k not in ("vocab_size", "mem_len")})


# -- folders ----------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors", "model.pt"])
def test_a_folder_is_converted(tmp_path: Path, file: str) -> None:
    original = file == "model.pt"
    theirs = source(SMALL, original=original)
    write(tmp_path / "in", theirs, SMALL)
    (tmp_path / "in" / "pytorch_model.bin").rename(tmp_path / "in" / file)
    if file == "model.safetensors":
        alone = {name: weight.clone() for name, weight in theirs.items()}
        save_file(alone, tmp_path / "in" / file)
    words = [f"w{i}" for i in range(22)]
    (tmp_path / "in" / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    done = CliRunner().invoke(
        app, ["convert", "transfo-xl", str(tmp_path / "in"), str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output
    assert "has no tokenizer" in done.output and "same_length is not supported" in done.output
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"config.json", "model.safetensors", "words.txt"}
    assert (tmp_path / "out" / "words.txt").read_text(encoding="utf-8").split() == words
    model = load_model(tmp_path / "out", device="cpu")
    wanted = convert_weights(theirs, model.config, original=original)
    found = model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_converted_checkpoint_reads_no_text(tmp_path: Path) -> None:
    write(tmp_path / "in", source(SMALL), SMALL)
    convert_transfo_xl(tmp_path / "in", tmp_path / "out")
    (tmp_path / "moby.txt").write_text("Call me Ishmael.")
    command = ["feed", str(tmp_path / "moby.txt"), "--session", "a", "--store", str(tmp_path)]
    done = CliRunner().invoke(app, [*command, "--model", str(tmp_path / "out")])
    assert done.exit_code != 0 and "reads ids, not text" in str(done.exception)
    assert not (tmp_path / "a.zarr").exists()


def test_words_of_a_saved_vocabulary(tmp_path: Path) -> None:
    values = {**SMALL, "same_length": False}
    write(tmp_path / "in", source(values), values)
    saved = tmp_path / "in" / "vocab.bin"
    torch.save({"idx2sym": [str(i) for i in range(22)], "sym2idx": OrderedDict(), "a": None}, saved)
    notes = convert_transfo_xl(tmp_path / "in", tmp_path / "out")
    assert len(notes) == 1 and (tmp_path / "out" / "words.txt").read_text().split()[21] == "21"
    torch.save({"idx2sym": ["a"]}, saved)
    with pytest.raises(ValueError, match="lists 1 words; vocab_size is 22"):
        convert_transfo_xl(tmp_path / "in", tmp_path / "other")
    torch.save({"idx2sym": Path("x")}, saved)
    notes = convert_transfo_xl(tmp_path / "in", tmp_path / "other")
    assert "was not read" in notes[0] and not (tmp_path / "other" / "words.txt").exists()


class Bomb:
    """An object that must never be unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("it was unpickled",))


def test_a_pickled_model_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "in", source(SMALL), SMALL)
    torch.save(Bomb(), tmp_path / "in" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"more than plain tensors.* runs the code.*state_dict"):
        convert_transfo_xl(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_invalid_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no Transformer-XL; expected: config\.json and"):
        convert_transfo_xl(tmp_path / "in", tmp_path / "out")
    write(tmp_path / "in", source(SMALL), {**SMALL, "d_inner": 21})
    with pytest.raises(ValueError, match=r"(?s)pytorch_model\.bin: .*size mismatch"):
        convert_transfo_xl(tmp_path / "in", tmp_path / "out")
    write(tmp_path / "in", source(SMALL), {**SMALL, "n_layer": 3})
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: .*missing: transformer\.layers\.2"):
        convert_transfo_xl(tmp_path / "in", tmp_path / "out")
    write(tmp_path / "in", source(SMALL), {**SMALL, "attn_type": 1})
    with pytest.raises(ValueError, match=r"config\.json: attn_type = 1"):
        convert_transfo_xl(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json: it holds no JSON object"):
        convert_transfo_xl(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "pytorch_model.bin").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is damaged"):
        convert_transfo_xl(tmp_path / "in", tmp_path / "out")
    torch.save([torch.zeros(1)], tmp_path / "in" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="is not a state dict; allowed: tensors by name"):
        convert_transfo_xl(tmp_path / "in", tmp_path / "out")
    with pytest.raises(ValueError, match="already exists; allowed: a new or empty directory"):
        convert_transfo_xl(tmp_path / "in", tmp_path / "in")
