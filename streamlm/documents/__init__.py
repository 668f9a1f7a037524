"""The text of HTML, EPUB and PDF files that anybody may have made.

`document_text` reads a file in a process of its own, with limits of memory and time; the other
modules run in that process.
"""

from streamlm.documents.limits import KINDS, Limits
from streamlm.documents.reading import document_text

__all__ = ["KINDS", "Limits", "document_text"]
