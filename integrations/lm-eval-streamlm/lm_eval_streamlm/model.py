"""StreamLM: a model of streamlm as the harness calls it.

A text is read as one stream, segment by segment, and is never cut at a context length: nothing is
left out at its left, and no window slides over it.
"""

from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from tqdm import tqdm

import streamlm
from streamlm.engine import Engine, Handle
from streamlm.models.cache import Cache
from streamlm.runtime.sampling import Sampling
from streamlm.runtime.stream import close, pieces
from streamlm.runtime.text_stream import TextStream


@register_model("streamlm")
class StreamLM(LM):
    """A model that reads texts of any length.

    Args:
        pretrained: an argument of `streamlm.load`, such as a name, a folder or a .gguf file.
        batch_size: texts that are generated at once; scoring reads one after the other.
        device: auto, cpu, cuda or cuda:N.
        settings: see `streamlm.load`, such as memory_len=1024.
    """

    def __init__(
        self,
        pretrained: str = "books",
        *,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str = "auto",
        **settings: Any,
    ) -> None:
        super().__init__()
        self.checkpoint = streamlm.load(pretrained, device=device, settings=settings)
        if self.checkpoint.model.frozen is None:
            self.checkpoint.model.freeze()
        self._rows = 16 if str(batch_size).startswith("auto") else int(batch_size)
        self._read: tuple[tuple[int, ...], TextStream, Cache] | None = None

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation in nats, and whether each of its tokens is likeliest.

        As in the harness, white space at the end of a context belongs to the continuation, and a
        continuation has the tokens that it adds to those of its context.
        """
        found = []
        for request in tqdm(requests, desc="scoring", disable=disable_tqdm):
            context, continuation = request.args
            encode, start = self.checkpoint.tokenizer.encode, context.rstrip()
            ids, n = encode(context + continuation), len(encode(start))
            found.append(self._score(ids[:n], ids[n:]))
            self.cache_hook.add_partial("loglikelihood", request.args, found[-1])
        return found

    @torch.no_grad()
    def _score(self, before: np.ndarray, ids: np.ndarray) -> tuple[float, bool]:
        if not len(ids):
            return 0.0, True
        model, key = self.checkpoint.model, tuple(before.tolist())
        if self._read is None or self._read[0] != key:  # choices with one context read it once
            cache = Cache()
            stream = TextStream.begin(self.checkpoint, seed=0)
            self._read = key, stream.read_ids(self.checkpoint, before, cache=cache), cache
        _, stream, cache = self._read
        state, cache = stream.state, cache.copy()
        inputs = torch.tensor([[stream.pending, *ids[:-1].tolist()]], device=model.device)
        wanted = torch.tensor([ids.tolist()], device=model.device)
        total, greedy = 0.0, True
        state = close(model, state, cache)
        parts = zip(pieces(model, inputs, state), pieces(model, wanted, state), strict=True)
        for piece, targets in parts:
            hidden, state = model.hidden(piece, state, cache)
            state = close(model, state, cache)
            total += float(model.log_prob(hidden, targets).double().sum())
            greedy = greedy and bool((model.logits(hidden[0]).argmax(-1) == targets[0]).all())
        return total, greedy

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of each text in nats, each of its tokens given all before it."""
        found = []
        for request in tqdm(requests, desc="reading", disable=disable_tqdm):
            (text,) = request.args
            session = streamlm.Session(self.checkpoint)
            found.append(-session.score(text).nats if text else 0.0)
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text after each context, up to the first of its stop strings."""
        found: list[str] = []
        bar = tqdm(total=len(requests), desc="generating", disable=disable_tqdm)
        with Engine(self.checkpoint, rows=self._rows) as engine, bar:
            for start in range(0, len(requests), self._rows):
                group = requests[start : start + self._rows]
                handles = [self._generate(engine, *request.args) for request in group]
                for request, handle in zip(group, handles, strict=True):
                    found.append("".join(handle))
                    self.cache_hook.add_partial("generate_until", request.args, found[-1])
                    bar.update()
        return found

    def _generate(self, engine: Engine, context: str, given: dict[str, Any]) -> Handle:
        """Greedy unless `do_sample`, as in the harness."""
        stop = given.get("until") or ()
        names = {"temperature", "top_k", "top_p", "min_p", "repetition_penalty"} & set(given)
        values = {name: given[name] for name in names}
        if not given.get("do_sample", values.get("temperature", 0) > 0):
            values["temperature"] = 0
        return engine.generate(
            streamlm.Session(self.checkpoint),
            context,
            Sampling(**{"top_p": 1.0, "temperature": 1.0} | values),
            max_tokens=int(given.get("max_gen_toks", 256)),
            stop=[stop] if isinstance(stop, str) else [text for text in stop if text],
            seed=given.get("seed"),
        )
