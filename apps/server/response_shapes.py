"""The shapes of the Responses API: a response, and the events of one that is streamed."""

import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from apps.server.asked import Asked
from apps.server.service import Service
from apps.server.sse import Emit
from streamlm.engine import Written


@dataclass
class Shape:
    """One response while it is written, and afterwards.

    Attributes:
        id: of the response; echoed: fields of the request that the answer repeats.
        emit: sends an event; None where nothing is streamed.
        session: its name, or None; position: after it.
    """

    id: str
    service: Service
    asked: Asked
    echoed: dict[str, Any]
    emit: Emit | None
    session: str | None = None
    position: int | None = None
    texts: list[str] = field(default_factory=list)
    created: int = field(default_factory=lambda: int(time.time()))
    message: str = field(default_factory=lambda: f"msg_{secrets.token_hex(12)}")
    _events: int = 0

    async def begin(self) -> None:
        """Say that the response is being written."""
        response = self._response("in_progress", [], None)
        await self._send("response.created", response=response)
        await self._send("response.in_progress", response=response)
        await self._send(
            "response.output_item.added", output_index=0, item=self._item("in_progress", [])
        )
        await self._send("response.content_part.added", **self._place(), part=self._part(""))

    async def take(self, piece: str) -> None:
        """Add what was written; the first piece begins the response."""
        if not self.texts:
            await self.begin()
        self.texts.append(piece)
        await self._send("response.output_text.delta", **self._place(), delta=piece, logprobs=[])

    async def end(self, written: Written) -> dict[str, Any]:
        """End the response; returns its whole shape."""
        if not self.texts:
            await self.begin()
        text = "".join(self.texts)
        status = "completed" if written.reason == "stop" else "incomplete"
        part = self._part(text)
        item = self._item(status, [part])
        response = self._response(status, [item], written)
        await self._send("response.output_text.done", **self._place(), text=text, logprobs=[])
        await self._send("response.content_part.done", **self._place(), part=part)
        await self._send("response.output_item.done", output_index=0, item=item)
        await self._send(f"response.{status}", response=response)
        return response

    async def _send(self, kind: str, **fields: Any) -> None:
        if self.emit is not None:
            await self.emit({"type": kind, "sequence_number": self._events, **fields})
        self._events += 1

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.message, "output_index": 0, "content_index": 0}

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _item(self, status: str, content: list[Any]) -> dict[str, Any]:
        return {
            "type": "message",
            "id": self.message,
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def _response(self, status: str, output: list[Any], written: Written | None) -> dict[str, Any]:
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        sampling = self.asked.sampling
        return {
            **{"id": self.id, "object": "response", "created_at": self.created, "status": status},
            **{"error": None, "incomplete_details": cut, "model": self.service.name},
            **{"output": output, "parallel_tool_calls": False, "tool_choice": "none", "tools": []},
            **{"temperature": sampling.temperature, "top_p": sampling.top_p},
            **{"max_output_tokens": self.asked.max_tokens, "truncation": "disabled"},
            **{"text": {"format": {"type": "text"}}, "reasoning": None, "user": None},
            **self.echoed,
            "usage": None if written is None else _usage(written),
            "session": self.session and {"name": self.session, "position": self.position},
        }


def _usage(written: Written) -> dict[str, Any]:
    return {
        "input_tokens": written.n_read,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": int(written),
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": written.n_read + int(written),
    }
