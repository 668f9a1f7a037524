"""The process that reads one document: it limits itself, prints the text, and ends.

Arguments are the file, its kind and the limits. The exit status says what is on standard output:
0 the text, `REFUSED` a message. `EXHAUSTED` says that there was not enough memory.
"""

import json
import sys
from pathlib import Path

from streamlm.documents.epub import epub_text
from streamlm.documents.html_text import html_text
from streamlm.documents.limits import DocumentError, Limits
from streamlm.documents.pdf import pdf_text

REFUSED, EXHAUSTED = 3, 4


def main() -> int:
    """Read a document; returns the exit status."""
    file, kind, given = sys.argv[1:]
    limits, path = Limits(**json.loads(given)), Path(file)
    confine(limits)
    status = 0
    try:
        if kind == "html":
            text = html_text(path.read_bytes(), most=limits.text)
        elif kind == "epub":
            text = epub_text(path, limits)
        else:
            text = pdf_text(path, limits)
        said = text.encode("utf-8", "replace")
    except DocumentError as error:
        said, status = str(error).encode("utf-8", "replace"), REFUSED
    except (MemoryError, RecursionError):
        return EXHAUSTED
    sys.stdout.buffer.write(said)
    sys.stdout.flush()
    return status


def confine(limits: Limits) -> None:
    """Limit this process's memory and processor time, and let it write no files."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows has none; the time limit remains
        return
    for kind, most in (
        (resource.RLIMIT_AS, limits.memory),
        (resource.RLIMIT_CPU, limits.seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (least, least))


if __name__ == "__main__":
    sys.exit(main())
