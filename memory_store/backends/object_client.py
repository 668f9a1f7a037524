"""Where a URL of object storage leads, with whose credentials, and what its errors mean.

Credentials come from the environment, or from the files that the providers' own tools keep; never
from the URL, and nothing of them is written, logged or shown. obstore's own text of an error may
name a URL with its signature, so only the storage's code or the status is taken from it.
"""

import configparser
import os
import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory_store.errors import StoreError

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Client

SCHEMES = ("s3", "gs", "az")
URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
PART = re.compile(r"(?!\.{1,2}\Z)[^\x00-\x1f\x7f?#\\]+")
ALLOWED = "s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"

NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")

RETRY: Any = {  # about ten seconds, then the caller is told
    "max_retries": 5,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {
        "init_backoff": timedelta(milliseconds=200),
        "max_backoff": timedelta(seconds=5),
        "base": 2,
    },
}
TIMEOUT = "120s"  # of one request: many large ones may share a slow line


def is_url(place: object) -> bool:
    """Whether a place is given as a URL, of whatever scheme, and not as a path."""
    return isinstance(place, str) and URL.fullmatch(place) is not None


def split(url: str) -> tuple[str, str, str]:
    """Scheme, bucket and prefix ("" for all of the bucket).

    Raises:
        ValueError: says what is allowed. What the URL may hold of a secret is not repeated.
    """
    match = URL.fullmatch(url)
    scheme = match[1] if match else ""
    if match is None or scheme not in SCHEMES:
        raise ValueError(f"a URL with the scheme {scheme!r}; allowed: a folder, or {ALLOWED}")
    bucket, *parts = match[2].rstrip("/").split("/")
    if not BUCKET.fullmatch(bucket) or not all(map(PART.fullmatch, parts)):
        raise ValueError(
            f"a URL with the scheme {scheme!r} that names no bucket and prefix; allowed: "
            f"{ALLOWED}, without '?', '#', a user or empty parts; credentials belong in the "
            "environment"
        )
    return scheme, bucket, "/".join(parts)


def connect(url: str) -> "tuple[Client, str]":
    """A client for what lies below a URL, and what to call it; nothing is asked of the network.

    S3: the variables AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION,
    AWS_ENDPOINT_URL, …; else the profile AWS_PROFILE of ~/.aws/credentials and ~/.aws/config.
    Google Cloud: GOOGLE_APPLICATION_CREDENTIALS, or what `gcloud auth` keeps.
    Azure: the variables AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY, ….

    Raises:
        ValueError: not such a URL.
        StoreError: obstore is not installed, or refuses the configuration.
    """
    scheme, bucket, prefix = split(url)
    try:
        from obstore.store import AzureStore, GCSStore, S3Store
    except ImportError:
        raise StoreError(
            f"{scheme}://{bucket}: object storage needs the package obstore. Install the extra: "
            "pip install 'streamlm[objects]'."
        ) from None
    # Options given here hide the variable that allows http, for servers on the own machine.
    provider = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}[scheme]
    http = os.environ.get(f"{provider}_ALLOW_HTTP", "").lower() in ("1", "true")
    options: Any = {
        "prefix": prefix or None,
        "retry_config": RETRY,
        "client_options": {"timeout": TIMEOUT, "allow_http": http},
    }
    try:
        client: Client
        if scheme == "s3":
            client = S3Store(bucket, **options, **_aws_files())
        elif scheme == "gs":
            client = GCSStore(bucket, **options)
        else:
            client = AzureStore(bucket, **options)
    except Exception as error:  # its text may name a secret
        raise StoreError(
            f"{scheme}://{bucket}: the client refuses its configuration ({type(error).__name__}). "
            "Check the variables in the environment."
        ) from None
    return client, f"{scheme}://{bucket}" + (f"/{prefix}" if prefix else "")


def _aws_files() -> dict[str, Any]:
    """What the files of Amazon's tools say and the environment does not."""
    if "AWS_ACCESS_KEY_ID" in os.environ:
        return {}
    profile = os.environ.get("AWS_PROFILE", "default")
    home = Path.home() / ".aws"
    found: dict[str, str] = {}
    for variable, name, section in (
        ("AWS_CONFIG_FILE", "config", profile if profile == "default" else f"profile {profile}"),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials", profile),
    ):
        parser = configparser.RawConfigParser()
        try:
            parser.read(os.environ.get(variable, home / name), encoding="utf-8")
        except (configparser.Error, ValueError):
            continue
        if parser.has_section(section):
            found.update(parser[section])
    keys = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    if not found.get(keys[0]):
        return {}
    given: dict[str, Any] = {key: found[key] for key in keys if found.get(key)}
    if "region" in found and not {"AWS_REGION", "AWS_DEFAULT_REGION"} & os.environ.keys():
        given["region"] = found["region"]
    return given


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
