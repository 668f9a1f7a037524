"""What a pretrained model loses by bounded memory: bits per byte of books, policy by policy.

    python -m benchmarks.policies                       # smollm2, 6,144 tokens of each test book
    python -m benchmarks.policies --tokens 2048 --books 4            # a quick look

All policies read the same tokens of the same books with the same weights. What is compared begins
after the first `--warm-up` tokens, when the windows are full. Differences are paired by book. "Full
attention" sees every token so far: it is what the others would cost nothing against, and its memory
grows.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

import streamlm
from benchmarks.tools.policies_plot import draw
from benchmarks.tools.positions import interval
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.cli.display import bar, output
from streamlm.lab.results import usable_cores, write_results
from streamlm.models.cache import Cache
from streamlm.models.llama_config import LlamaConfig
from streamlm.runtime.stream import score
from streamlm.training.documents import read_documents

WINDOW = "window and pinned tokens, same slots"
FULL = "full attention"


def policies(config: LlamaConfig, tokens: int) -> dict[str, dict[str, Any]]:
    """Settings of each policy; all but the last two keep as many slots."""
    pinned, slots = config.pinned_len, config.memory_len + config.compressed_len
    reach = config.memory_len + config.compression_rate * config.compressed_len
    plain: dict[str, Any] = {"compressed_len": 0, "compression_loss": "none"}

    def kept(compression: str) -> dict[str, Any]:
        return {"compression": compression, "compression_loss": "none"}

    return {
        "window alone, same slots": {**plain, "memory_len": slots + pinned, "pinned_len": 0},
        WINDOW: {**plain, "memory_len": slots},
        "mean": kept("mean"),
        "most-used": kept("most-used"),
        "learned select": kept("select"),
        "not compressed, same reach": {**plain, "memory_len": reach},
        FULL: {**plain, "memory_len": tokens, "pinned_len": 0},
    }


def read(checkpoint: Checkpoint, ids: Tensor, *, warm_up: int, rows: int, advance: Any) -> Tensor:
    """Nats of the tokens after the warm-up: [books, n]."""
    model, found = checkpoint.model, []
    bos = torch.full((len(ids), 1), checkpoint.tokenizer.bos_id)
    inputs = torch.cat([bos, ids[:, :-1]], dim=1)
    t = model.config.segment_len
    for start in range(0, len(ids), rows):
        some, targets = inputs[start : start + rows], ids[start : start + rows]
        state, cache, nats = model.init_state(len(some)), Cache(), []
        for at in range(0, ids.shape[1], t):
            part = slice(at, at + t)
            logprobs, state = score(model, some[:, part], targets[:, part], state, cache)
            nats.append(-logprobs)
            advance(len(some) * t)
        found.append(torch.cat(nats, dim=1)[:, warm_up:])
    return torch.cat(found).double()


def difference(this: Tensor, other: Tensor, n_bytes: Tensor) -> dict[str, Any]:
    """`this` minus `other`: nats a token and bits a byte, with 95 % intervals over books."""
    top = (this - other).sum(1, keepdim=True).numpy()
    rows: dict[str, Any] = {"books_better": int((top < 0).sum())}
    for name, scale, bottom in (
        ("nats_per_token", 1.0, np.full_like(top, this.shape[1])),
        ("bits_per_byte", 1 / np.log(2), n_bytes.numpy()[:, None].astype(float)),
    ):
        low, high = interval(top * scale, bottom)[:, 0]
        middle = float((top * scale).sum() / bottom.sum())
        rows[name] = {"difference": middle, "low": float(low), "high": float(high)}
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.policies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--data", type=Path, default=Path("data/books/test.txt.xz"))
    parser.add_argument("--books", type=int, help="the first so many; default: all")
    parser.add_argument("--tokens", type=int, default=6144, help="of each book")
    parser.add_argument("--warm-up", type=int, default=1536, help="tokens that are not compared")
    parser.add_argument("--rows", type=int, default=4, help="books read side by side")
    parser.add_argument("--only", nargs="*", help="policies, by the beginnings of their names")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    base = streamlm.load(options.model, device="cpu", dtype=dtype)
    assert isinstance(base.model.config, LlamaConfig)
    t = base.model.config.segment_len
    tokens, warm_up = options.tokens // t * t, options.warm_up // t * t
    ids = []
    for text in list(read_documents(options.data))[: options.books]:
        begin = len(text) // 10  # behind title pages and tables of contents
        ids.append(base.tokenizer.encode(text[begin : begin + 8 * tokens])[:tokens])
    read_ids = torch.from_numpy(np.stack(ids).astype(np.int64))
    n_bytes = torch.tensor([int(base.tokenizer.token_lengths[row[warm_up:]].sum()) for row in ids])
    chosen = {
        name: settings
        for name, settings in policies(base.model.config, tokens).items()
        if not options.only or name.startswith((WINDOW, *options.only))
    }
    found: dict[str, Tensor] = {}
    kept = options.out / "policies.partial.json"
    total = len(chosen) * read_ids.numel()
    with bar("reading", total=total, fields="{task.fields[note]}") as (progress, task):
        for name, settings in chosen.items():
            checkpoint = streamlm.load(options.model, device="cpu", dtype=dtype, settings=settings)
            with torch.no_grad():
                found[name] = read(
                    checkpoint,
                    read_ids,
                    warm_up=warm_up,
                    rows=options.rows,
                    advance=lambda n, name=name: progress.update(task, advance=n, note=name),
                )
            kept.parent.mkdir(parents=True, exist_ok=True)
            means = {each: float(nats.mean()) for each, nats in found.items()}
            kept.write_text(json.dumps(means, indent=1) + "\n", encoding="utf-8")
    figures = {
        name: {
            "settings": chosen[name],
            "nats_per_token": float(nats.mean()),
            "bits_per_byte": float(nats.sum() / n_bytes.sum() / np.log(2)),
            "against_window": difference(nats, found[WINDOW], n_bytes),
        }
        for name, nats in found.items()
    }
    settings = {
        **{"model": options.model, "weights": base.fingerprints["weights"], "dtype": options.dtype},
        **{"data": options.data.name, "books": len(ids), "tokens": tokens, "warm_up": warm_up},
        "windows": base.model.config.to_dict(),
    }
    write_results(options.out / "policies.json", settings=settings, figures=figures)
    kept.unlink()
    draw(figures, options.out / "policies.png", reference=WINDOW)
    show(figures)


def show(figures: dict[str, Any]) -> None:
    """The figures as a table."""
    table = Table(title="bits per byte of books, after the windows are full")
    for column in ("policy", "bits/byte", "nats/token", "against window", "95 % interval", "books"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for name, row in figures.items():
        paired = row["against_window"]["nats_per_token"]
        table.add_row(
            name,
            f"{row['bits_per_byte']:.4f}",
            f"{row['nats_per_token']:.4f}",
            f"{paired['difference']:+.4f}",
            f"{paired['low']:+.4f} to {paired['high']:+.4f}",
            str(row["against_window"]["books_better"]),
        )
    output.print(table)


if __name__ == "__main__":
    main()
