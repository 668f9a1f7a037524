"""Sources of the data files that recipes and evaluations name; the project does not ship them."""

from pathlib import Path

# Project Gutenberg numbers of the books in books/SPLIT.txt.xz, in their order.
BOOKS: dict[str, tuple[int, ...]] = {
    "valid": (
        *(8545, 13089, 42142, 48677, 37833, 555, 4533, 48461, 41074, 43423, 58093, 48089, 24360),
        *(34100, 28776, 5195, 38214, 1925),
    ),
    "test": (
        *(3608, 30312, 54537, 6412, 50287, 42081, 41603, 3754, 10321, 3340, 10762, 5770, 51410),
        *(44557, 7987, 9931, 5956, 48693, 30754, 34467),
    ),
    "valid-extra": (
        *(42067, 11155, 55658, 53682, 44896, 25066, 51859, 44912, 29981, 6404, 356, 7510),
    ),
    "test-extra": (
        *(26239, 8559, 47068, 31065, 4047, 25773, 22424, 55871, 5962, 2544, 55339, 46915, 37702),
        *(10146, 28444, 53345, 49529, 32761, 38106, 26183, 5734, 27454, 7412, 35205, 25830, 24553),
        *(37328, 3890, 38929, 29973, 30981, 49078),
    ),
}
SPLITS = tuple(BOOKS)

# Beginnings of the names of files in a folder, and what the files hold.
OTHERS = {
    "books": {"train-": "364 Project Gutenberg books of the PG-19 training set"},
    "wiki": {
        "wikitext-2": "the WikiText-2 corpus (Merity et al. 2016): train, valid or test tokens",
        "wikitext-103": "the WikiText-103 corpus (Merity et al. 2016): valid or test tokens",
        "enwik8": "the first 4,000,000 bytes of enwik8, the Wikipedia dump of the Hutter Prize",
    },
    "ett": {"ETT": "the ETT series of the Informer's authors (ETDataset), as CSV"},
}
FORMAT = "UTF-8 text compressed with xz; a line that holds only a form feed separates documents"


def split_file(split: str, data_dir: Path) -> Path:
    """The file of a split of the books: `data_dir`/books/SPLIT.txt.xz."""
    return data_dir / "books" / f"{split}.txt.xz"


def source_of(path: Path) -> str | None:
    """Where a data file comes from, judged by its folder and name; None for unknown files."""
    folder, name = path.parent.name, path.name
    split = name.removesuffix(".txt.xz")
    if folder == "books" and split in BOOKS:
        numbers = BOOKS[split]
        listed = "validation" if split.startswith("valid") else "test"
        return (
            f"{len(numbers)} Project Gutenberg books of the PG-19 {listed} set, numbers "
            f"{', '.join(map(str, numbers))}"
        )
    for beginning, source in OTHERS.get(folder, {}).items():
        if name.startswith(beginning):
            return source
    return None


def missing_data(path: Path) -> str:
    """The end of an error message about a missing data file: its source and format; or ""."""
    source = source_of(path)
    if source is None:
        return ""
    form = f", as {FORMAT}" if path.suffix == ".xz" else ""
    return f". The project does not include this file: it holds {source}{form}"
