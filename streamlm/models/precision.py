"""Precision of a frozen model's weights, chosen for the processor.

- "float32" and "bfloat16": all weights and activations.
- "int8": weights are 8-bit integers and their inputs two digits of 8 bits (`layers.packed`), sums
  and residuals are float32, and the attention of Llamas is computed in bfloat16 where the processor
  multiplies such numbers. Of a Transformer-XL, an adaptive vocabulary, compressors and position
  keys stay as they are.
- "auto": see `choose_precision`.

There is no "int4": torch's 4-bit kernel unpacks its weights for every product, which costs about
what smaller weights save.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from streamlm.config import any_of
from streamlm.models.base import Model
from streamlm.models.layers.int8_block import Int8Attention, Int8FeedForward
from streamlm.models.layers.int8_step import Int8Step
from streamlm.models.layers.packed import Frozen, Int8Embedding, Int8Linear, has_int8_kernels
from streamlm.models.llama import LlamaModel
from streamlm.models.transformer_xl import TransformerXL

AUTO, FLOAT32, BFLOAT16, INT8 = "auto", "float32", "bfloat16", "int8"
PRECISIONS = (AUTO, FLOAT32, BFLOAT16, INT8)


def has_bfloat16_products() -> bool:
    """Whether the processor multiplies bfloat16 numbers; others convert them to float32 first."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose_precision(model: Model) -> str:
    """The precision that "auto" stands for.

    On a GPU, and for models other than Llamas, weights stay as they are: what a model that was
    trained here computes is the same everywhere but for rounding. Of a Llama on a CPU, writing is
    bound by the bytes of the weights, so the smallest are the fastest: "int8" on processors with
    AVX-512 VNNI. Without it, inputs have two digits of 7 bits; no such processor was measured, so
    "int8" must be asked for. Otherwise "bfloat16" where the processor multiplies such numbers, and
    "float32" elsewhere.
    """
    if is_packed(model):
        return INT8
    if not isinstance(model, LlamaModel) or model.device.type != "cpu":
        return str(_dtype(model)).removeprefix("torch.")
    if has_int8_kernels() and torch.cpu._is_vnni_supported():
        return INT8
    return BFLOAT16 if has_bfloat16_products() else FLOAT32


def set_precision(model: Model, precision: str = AUTO) -> str:
    """Convert a frozen model in place; its weights in the former precision are dropped.

    Returns:
        The precision, if `precision` is "auto" the chosen one.

    Raises:
        ValueError: the precision is unknown, or the model, its device, this processor or this torch
            cannot have it; says what is allowed.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}; allowed: {any_of(PRECISIONS)}")
    if model.frozen is None:
        raise ValueError(f"precision {precision!r} of a model in training; allowed: a frozen model")
    chosen = choose_precision(model) if precision == AUTO else precision
    if chosen == INT8:
        if not is_packed(model):
            _check_int8(model)
            if isinstance(model, LlamaModel):
                _pack(model)
            else:
                _pack_relative(cast(TransformerXL, model))
    elif is_packed(model):
        raise ValueError(f"precision {chosen!r} of int8 weights; allowed: load the model again")
    else:
        dtype = getattr(torch, chosen)
        if _dtype(model) != dtype:
            model.to(dtype)
    return chosen


def is_packed(model: Model) -> bool:
    """Whether the model has int8 weights."""
    return any(isinstance(module, Frozen) for module in model.modules())


def _dtype(model: Model) -> torch.dtype:
    weight = model.final_norm.weight if isinstance(model, LlamaModel) else model.output_bias
    return cast(Tensor, weight).dtype


def _check_int8(model: Model) -> None:
    """Raises ValueError if the model cannot have int8 weights here."""
    others = f"allowed: {FLOAT32}, {BFLOAT16}"
    if not isinstance(model, (LlamaModel, TransformerXL)):
        raise ValueError(f"precision 'int8' of head {model.config.head!r}; {others}")
    if model.device.type != "cpu":
        raise ValueError(f"precision 'int8' on {model.device}; {others}, or the CPU")
    if not has_int8_kernels():
        engine = torch.backends.quantized.engine
        raise ValueError(
            "precision 'int8' needs FBGEMM's kernels: an x86 processor with AVX2, and torch with "
            f"the quantized engine 'x86' or 'fbgemm', which here is {engine!r}; {others}"
        )


def _pack(model: LlamaModel) -> None:
    for layer in model.layers:
        block = cast(Any, layer)
        block.attention = Int8Attention(block.attention)
        block.feed_forward = Int8FeedForward(block.feed_forward)
    output = model.embedding if model.output is None else model.output
    model.output = Int8Linear(cast(nn.Linear, output).weight)
    cast(Any, model).embedding = Int8Embedding(cast(nn.Embedding, model.embedding).weight)
    model.attend_in(torch.bfloat16 if has_bfloat16_products() else torch.float32)
    model.requires_grad_(False).eval().float()
    add_step(model)


def _pack_relative(model: TransformerXL) -> None:
    model.requires_grad_(False).float()
    for layer in cast(Any, model.layers):
        attention = layer.attention
        for name in ("query", "key_value", "output"):
            setattr(attention, name, Int8Linear(getattr(attention, name).weight))
        for index in (0, 3):
            plain = layer.feed_forward[index]
            layer.feed_forward[index] = Int8Linear(plain.weight, plain.bias)
    if isinstance(model.embedding, nn.Embedding):
        model.output = Int8Linear(model.embedding.weight, model.output_bias)
        cast(Any, model).embedding = Int8Embedding(model.embedding.weight)
    model.freeze()


def add_step(model: LlamaModel) -> None:
    """Let single tokens take the fast way, if the blocks of this int8 model have one."""
    if Int8Step.supports(model.layers):
        model.step = Int8Step(
            model.layers,
            eps=model.config.norm_eps,
            columns=model.config.columns,
            dtype=model.attention_dtype,
            as_slots=model.as_slots,
        )
