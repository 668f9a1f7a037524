"""Scores of single lines, for logs: which lines surprise a model that has read the others."""

import codecs
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from streamlm.runtime.reports import ReadReport
from streamlm.sessions.sources import OpenSource, Source


class NumberedLines:
    """A source whose blocks are passed on as text, while its lines are kept.

    Attributes:
        name: of the source.
        lines: the texts of the lines so far, with their ends.
    """

    def __init__(self, source: Source, errors: str) -> None:
        self._source = OpenSource(source)
        self._errors = errors
        self.name = self._source.name
        self.lines: list[str] = []

    def __iter__(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")(self._errors)
        rest = ""
        try:
            for block in self._source:
                text = block if isinstance(block, str) else decoder.decode(block)
                *whole, rest = (rest + text).split("\n")
                self.lines += [f"{line}\n" for line in whole]
                yield text
            text = decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.name} is not UTF-8 text: {error.reason} in line {len(self.lines) + 1}; "
                "--errors replace reads it anyway"
            ) from None
        if rest + text:
            self.lines.append(rest + text)
        if text:
            yield text


def line_scores(
    sources: list[NumberedLines], report: ReadReport, token_lengths: np.ndarray
) -> Iterator[dict[str, Any]]:
    """The score of each line, in order, as objects of JSON.

    A token counts for the line in which it begins. A line in which none begins has no bits.

    Args:
        sources: which were scored, to their ends.
        report: with the id and log-probability of every token.
        token_lengths: [V] bytes that each token stands for.
    """
    ids, logprobs = np.array(report.ids), np.array(report.logprobs)
    sizes = token_lengths[ids].astype(np.int64)
    begins = np.cumsum(sizes) - sizes
    texts = [line for source in sources for line in source.lines]
    ends = np.cumsum([len(line.encode("utf-8", "surrogatepass")) for line in texts])
    line_of = np.minimum(np.searchsorted(ends, begins, side="right"), len(texts) - 1)
    tokens = np.bincount(line_of, minlength=len(texts))
    n_bytes = np.bincount(line_of, weights=sizes, minlength=len(texts))
    nats = -np.bincount(line_of, weights=logprobs, minlength=len(texts))
    row = 0
    for source in sources:
        for number, line in enumerate(source.lines, start=1):
            size = int(n_bytes[row])
            yield {
                "file": source.name,
                "line": number,
                "tokens": int(tokens[row]),
                "bytes": size,
                "nats": float(nats[row]) if size else None,
                "bits_per_byte": float(nats[row]) / math.log(2) / size if size else None,
                "text": line.rstrip("\r\n"),
            }
            row += 1
