"""Inspection in steps: the memory of a session, from its newest tokens read again."""

from dataclasses import replace

import numpy as np
import torch

from streamlm.runtime.memory_report import MemoryReport, observing
from streamlm.runtime.steps import Steps
from streamlm.sessions.live import LiveStream
from streamlm.transfer import send


def memory_reporting(live: LiveStream) -> Steps[MemoryReport]:
    """Steps to a report on what a stream remembers at the first step; see `Session.memory_report`.

    The stream may go on in between.

    Raises:
        ValueError: as `Session.memory_report`.
    """
    with live.one_thread.use("report on memory"):
        live.extend_recent()
        if live.recent is None or live.recent.start == live.position:
            raise ValueError("nothing was read yet")
        stream = live.recent.starts[0]
        ids = live.log.take(stream.position, live.position)
    inputs = np.concatenate([[stream.pending], ids[:-1]]).astype(np.int64)
    tokens = send(torch.from_numpy(inputs)[None], live.checkpoint.model.device)
    report = yield from observing(live.checkpoint.model, tokens, stream.state)
    return replace(report, first=stream.position, ids=ids)
