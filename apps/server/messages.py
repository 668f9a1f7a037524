"""Messages of a chat, as clients send them, for a chat template."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from apps.server.errors import ApiError
from apps.server.fields import clean
from streamlm.checkpoints.checkpoint import Checkpoint
from tokenizer.chat import Message

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# What kinds of content are text, for all APIs.
TEXT_PARTS = ("text", "input_text", "output_text")
MOST = 4096


@dataclass(frozen=True)
class Chat:
    """A conversation that waits for a reply.

    Attributes:
        system: the first message if it is of the system; None without.
        history: what is between it and the newest; message: the newest, of the user.
    """

    system: str | None
    history: tuple[Message, ...]
    message: str


def require_chat(checkpoint: Checkpoint, name: str) -> None:
    """Raise ApiError if a model does not chat."""
    try:
        _ = checkpoint.chat
    except ValueError:
        raise ApiError(
            400,
            f"model {name!r} has no chat template: it continues texts and does not answer; "
            "allowed: /v1/completions, or a server whose model chats",
            param="model",
            code="no_chat_template",
        ) from None


def chat_of(value: Any, name: str) -> Chat:
    """Read the messages of a field.

    Raises:
        ApiError: one is not allowed; names it.
    """
    if not isinstance(value, list) or not 1 <= len(value) <= MOST:
        raise ApiError(400, f"{name}; allowed: a list of 1 to {MOST} messages", param=name)
    messages = [_message(each, f"{name}[{index}]") for index, each in enumerate(value)]
    last = messages[-1]
    if last["role"] != "user":
        raise ApiError(400, f"{name} ends with role {last['role']!r}; allowed: 'user'", param=name)
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    return Chat(system, tuple(messages[system is not None : -1]), last["content"])


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise ApiError(400, f"{where}; allowed: an object with role and content", param=where)
    role = ROLES.get(str(value.get("role")))
    if role is None:
        raise ApiError(
            400,
            f"{where}.role = {str(value.get('role'))!r:.40}; allowed: {', '.join(ROLES)}",
            param=f"{where}.role",
        )
    for name in ("tool_calls", "function_call", "audio"):
        if value.get(name):
            raise ApiError(400, f"{where}.{name}; allowed: none, there are no tools", param=where)
    return {"role": role, "content": _content(value.get("content"), f"{where}.content")}


def _content(value: Any, where: str) -> str:
    """A string, or the texts of a list of parts."""
    if isinstance(value, str):
        return clean(value)
    parts: Sequence[Any] = value if isinstance(value, list) else []
    texts = [
        part["text"]
        for part in parts
        if isinstance(part, dict)
        and part.get("type") in TEXT_PARTS
        and isinstance(part.get("text"), str)
    ]
    if not isinstance(value, list) or len(texts) < len(parts):
        raise ApiError(400, f"{where}; allowed: a string, or a list of text parts", param=where)
    return clean("".join(texts))
