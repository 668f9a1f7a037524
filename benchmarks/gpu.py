"""Everything that needs a GPU, in the order of its worth, for one that is borrowed by the minute.

    python -m benchmarks.gpu --device cpu             # a dry run: all of it, with tiny sizes
    python -m benchmarks.gpu carry --data data/books  # what must travel; prints what to run there
    python -m benchmarks.gpu --parts card right …     # there; see docs/gpu.md
    python -m benchmarks.gpu join WEIGHTS --out runs/books-gpu   # a checkpoint of what came back
    python -m benchmarks.gpu pack --data data/books --out DIR    # the data alone

It needs torch, numpy, safetensors and sentencepiece, and pytest for the tests. Every part and every
case is written to results.json as soon as it is known. One that fails is written down, and the next
goes on; one that no longer fits into the time is left out.
"""

import argparse
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "books-gpu.toml"
CARRIED = ROOT / ".carry"

# In order, with the seconds that each is expected to take on an H100; `train` takes what it gets.
PARTS = {
    "card": 5.0,
    "right": 40.0,
    "decode": 25.0,
    "feed": 8.0,
    "attention": 45.0,
    "train": 60.0,
    "streaming": 20.0,
    "compile": 120.0,
    "tests": 15.0,
}


def run(arguments: list[str], *, began: float) -> None:
    """Do parts, and exit with 1 if one of them failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a dry run; always without CUDA")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds for everything")
    parser.add_argument("--train-seconds", type=float, help="for training, compilation included")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--carried", type=Path, default=CARRIED, help="what `carry` has made")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    options = parser.parse_args(arguments)
    if (site := options.carried / "wheels").is_dir():
        sys.path.append(str(site.resolve()))  # what is installed goes first
    import torch

    from benchmarks.gpu_parts.run import RESULTS, Options, Run
    from benchmarks.tools.without_store import STORE  # before anything imports the store
    from streamlm.lab.results import describe

    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: a dry run on the CPU", flush=True)
        options.device = "cpu"
    tiny = options.tiny or options.device == "cpu"
    if tiny:
        torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = Options(
        device=options.device,
        tiny=tiny,
        recipe=options.recipe,
        packs=options.carried / "packs",
        out=options.out,
        train_seconds=options.train_seconds or (3.0 if tiny else 430.0),
        compile=options.compile and not tiny,
        store=STORE,
    )
    print(describe(options.device), flush=True)
    expected = {name: 0.0 if tiny else s for name, s in PARTS.items() if name in options.parts}
    doing = Run(chosen, expected, until=began + options.limit)
    for name in expected:
        module = f"benchmarks.gpu_parts.{name}"

        def measure(part: Any, module: str = module) -> None:
            import_module(module).measure(part)

        doing.do(name, measure)
        if options.device == "cuda":
            torch.cuda.empty_cache()
    failed = doing.failed()
    outcome = f"FAILED: {', '.join(failed)}" if failed else "all that ran is well"
    print(f"\nwritten to {options.out / RESULTS}; {outcome}", flush=True)
    sys.exit(bool(failed))


def pack(arguments: list[str]) -> None:
    """Encode the recipe's data files into packs of token ids."""
    options = with_data("pack", pack).parse_args(arguments)
    from benchmarks.gpu_parts.packs import data_files, write_packs

    files = data_files(options.recipe, options.data)
    write_packs(files, tokenizer_of(options.recipe), options.out / "packs", tell=print)


def carry(arguments: list[str]) -> None:
    """Assemble what must travel, and print its size and what to run there."""
    parser = with_data("carry", carry)
    parser.add_argument("--without", nargs="+", default=[], help="packs to leave out, by name")
    parser.add_argument("--python", default="3.12", help="version there; '' takes no wheels along")
    options = parser.parse_args(arguments)
    from benchmarks.gpu_parts.carry import carry as assemble
    from benchmarks.gpu_parts.carry import commands

    try:
        assemble(
            ROOT, options.recipe, options.data, options.out, tokenizer_of(options.recipe),
            without=options.without, python=options.python,
        )  # fmt: skip
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    print(commands(options.out.resolve().name))


def join(arguments: list[str]) -> None:
    """Make a checkpoint of the pieces that a training has left."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu join", description=join.__doc__)
    parser.add_argument("pieces", type=Path, help="folder with pieces.json")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    options = parser.parse_args(arguments)
    from benchmarks.gpu_parts.weights import join as joined

    try:
        found = joined(options.pieces, options.out, tokenizer_of(options.recipe))
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(f"{options.out}: {found['bytes']:,} bytes, step {found.get('steps')}, sha256 verified")


def with_data(name: str, command: Callable[..., None]) -> argparse.ArgumentParser:
    """The options of a command that packs data."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.gpu {name}", description=command.__doc__
    )
    parser.add_argument(
        "--data", type=Path, default=ROOT / "data" / "books", help="folder of texts"
    )
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="names the files and tokenizer")
    parser.add_argument("--out", type=Path, default=CARRIED)
    return parser


def tokenizer_of(recipe: Path) -> Any:
    import tomllib

    from tokenizer import load_tokenizer

    names = tomllib.loads(recipe.read_text(encoding="utf-8"))["data"]
    return load_tokenizer(Path(names["tokenizer"]))


def main(arguments: list[str] | None = None) -> None:
    began = time.monotonic()
    words = sys.argv[1:] if arguments is None else arguments
    commands = {"pack": pack, "carry": carry, "join": join}
    if words and words[0] in commands:
        commands[words[0]](words[1:])
    else:
        run(words, began=began)


if __name__ == "__main__":
    main()
