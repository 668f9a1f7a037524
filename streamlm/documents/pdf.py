"""The text of a PDF, by pypdf, which is pure Python."""

import logging
from pathlib import Path

from streamlm.documents.html_text import CONTROL
from streamlm.documents.limits import DocumentError, Limits


def pdf_text(path: Path, limits: Limits) -> str:
    """The text of all pages, with an empty line between two.

    Raises:
        DocumentError: it is damaged, encrypted or too large, or pypdf is not installed.
    """
    try:
        from pypdf import PdfReader
        from pypdf.errors import DependencyError
    except ModuleNotFoundError:
        raise DocumentError("needs pypdf to be read: pip install 'streamlm[documents]'") from None

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # errors are reported below
    try:
        reader = PdfReader(path)
        try:
            open_to_all = not reader.is_encrypted or bool(reader.decrypt(""))
        except DependencyError:
            open_to_all = False
        if not open_to_all:
            raise DocumentError("is encrypted; allowed: PDFs without a password")
        if len(reader.pages) > limits.parts:
            raise DocumentError(
                f"has {len(reader.pages):,} pages; allowed: at most {limits.parts:,}"
            )
        texts, length = list[str](), 0
        for page in reader.pages:
            texts.append(CONTROL.sub("\ufffd", page.extract_text()))
            length += len(texts[-1])
            if length > limits.text:
                raise DocumentError(f"has more than {limits.text:,} characters; allowed: no more")
    except (DocumentError, MemoryError):
        raise
    except Exception as error:  # pypdf and its filters raise whatever a damaged file leads them to
        kind = type(error).__name__
        raise DocumentError(f"is not a valid PDF ({kind}: {str(error)[:200]})") from None
    return "\n\n".join(texts)
