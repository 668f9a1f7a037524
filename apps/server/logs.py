"""Logs: one JSON object a line on standard error. Texts, prompts and keys are never in it."""

import json
import logging
import sys
import time
import traceback
from typing import Any

LOGGER = "streamlm.server"


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON; `extra={"fields": {...}}` adds fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(line)


def log(
    event: str,
    *,
    level: int = logging.INFO,
    exception: BaseException | None = None,
    **fields: Any,
) -> None:
    """Write a line.

    Args:
        exception: to add with its traceback.
    """
    logging.getLogger(LOGGER).log(level, event, extra={"fields": fields}, exc_info=exception)


def configure() -> None:
    """Send the logs of the server, and the warnings of uvicorn, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, level in ((LOGGER, logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
