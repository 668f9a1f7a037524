"""PromptSearch: what is recalled for a prompt, and put before it."""

from streamlm.config import check_whole
from streamlm.runtime.text_stream import RecalledSpan
from streamlm.sessions.live import LiveStream
from streamlm.sessions.recall import quoted


class PromptSearch:
    """The search for the passages that surely answer a prompt; it is done once.

    It changes nothing, so it may run on another thread than its stream, while that rests.

    Attributes:
        k: the maximum number of passages; with 0 nothing is searched.

    Args:
        live: the stream that is to read the prompt.

    Raises:
        ValueError: `k` is not a whole number ≥ 0, the prompt asks nothing, or there is no store.
    """

    def __init__(self, live: LiveStream, prompt: str, *, k: int) -> None:
        check_whole("recall", k)
        if k and not prompt.strip():
            raise ValueError("recall without a prompt; allowed: with a prompt that asks")
        if k:
            live.require_store("recall")
        self.k = k
        self._live = live
        self._prompt = prompt
        self._found: tuple[str, tuple[RecalledSpan, ...]] | None = None if k else (prompt, ())

    def result(self) -> tuple[str, tuple[RecalledSpan, ...]]:
        """The prompt with the passages before it, and where they stand in the stream.

        Raises:
            ValueError, memory_store.NotFound: as `LiveStream.recall`.
        """
        if self._found is None:
            found = [each for each in self._live.recall(self._prompt, k=self.k) if each.sure]
            spans = tuple(RecalledSpan(each.start, each.stop, each.score) for each in found)
            in_order = sorted(found, key=lambda each: each.start)
            self._found = quoted([each.text for each in in_order], self._prompt), spans
        return self._found
