"""What the errors of object storage mean, told in words that hold nothing of the request.

obstore's own text may name a URL with its signature, so only the storage's code or the status is
taken from it.
"""

import re

from memory_store.errors import StoreError

NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")


def is_obstores(error: Exception) -> bool:
    """Whether the error is of the storage or the way there, and not of this program."""
    return isinstance(error, OSError) or type(error).__module__ == "obstore.exceptions"


def is_no_bucket(error: Exception) -> bool:
    """Whether the bucket is missing, and not only an object."""
    return _code(error) in NO_BUCKET


def is_refusal(error: Exception) -> bool:
    """Whether the storage understood, and will not."""
    return is_no_bucket(error) or _status(error) in ("401", "403")


def reason(error: Exception) -> str:
    """The storage's own word for an error, or its status."""
    return _code(error) or _status(error) or "no answer"


def refused(error: Exception, doing: str, name: str) -> StoreError:
    """The error for what could not be done to the object or prefix `name`."""
    if is_no_bucket(error):
        return StoreError(f"{name}: no such bucket. Check the name, or create it first.")
    if is_refusal(error):
        return StoreError(
            f"{name}: not permitted while {doing} ({reason(error)}). Check the credentials in the "
            "environment, and what they allow."
        )
    return StoreError(
        f"{name}: the storage refused while {doing} ({reason(error)}). "
        "Check the endpoint and the network, then try again."
    )


def _code(error: Exception) -> str | None:
    match = re.search(r"<Code>(\w{1,60})</Code>", str(error))
    return match[1] if match else None


def _status(error: Exception) -> str | None:
    match = re.search(r"status code: (\d{3})", str(error))
    return match[1] if match else None
