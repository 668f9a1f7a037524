"""EPUB files made by hand: sound ones, and one that unfolds without end."""

import io
import zipfile

CONTAINER = '<container><rootfiles><rootfile full-path="OEBPS/book.opf"/></rootfiles></container>'


def epub(chapters: dict[str, bytes], *, spine: list[str] | None = None) -> bytes:
    """An EPUB with these chapters, read in the order of `spine`."""
    order = list(chapters) if spine is None else spine
    items = "".join(f'<item id="{i}" href="{name}"/>' for i, name in enumerate(chapters))
    refs = "".join(f'<itemref idref="{list(chapters).index(name)}"/>' for name in order)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("META-INF/container.xml", CONTAINER)
        archive.writestr(
            "OEBPS/book.opf",
            f"<package><manifest>{items}</manifest><spine>{refs}</spine></package>",
        )
        for name, data in chapters.items():
            archive.writestr(f"OEBPS/{name}", data)
    return made.getvalue()


def bomb() -> bytes:
    """50 MB in some kilobytes."""
    return epub({f"{i}.x": b"<p>" + b" " * 10_000_000 for i in range(5)})
