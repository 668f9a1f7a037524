"""Clients of object storage: URLs, credentials, and the errors of the storage.

Credentials come from the environment or from the files of the providers' own tools, never from the
URL; they are not written, logged or shown. obstore's error messages may contain a signed URL, so
only the storage's error code or the HTTP status is taken from them.
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

RETRY: Any = {  # for about ten seconds, then the error is raised
    "max_retries": 5,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {
        "init_backoff": timedelta(milliseconds=200),
        "max_backoff": timedelta(seconds=5),
        "base": 2,
    },
}
TIMEOUT = "120s"  # per request: many large requests may share a slow line


def is_url(place: object) -> bool:
    """Whether a place is a URL of any scheme, not a path."""
    return isinstance(place, str) and URL.fullmatch(place) is not None


def split(url: str) -> tuple[str, str, str]:
    """The scheme, bucket and prefix of a URL; the prefix "" is the whole bucket.

    Raises:
        ValueError: an unsupported URL; lists the allowed forms, and does not repeat the URL, which
            may contain a secret.
    """
    match = URL.fullmatch(url)
    scheme = match[1] if match else ""
    if match is None or scheme not in SCHEMES:
        raise ValueError(f"a URL with the scheme {scheme!r}; allowed: a folder, or {ALLOWED}")
    bucket, *parts = match[2].rstrip("/").split("/")
    if not BUCKET.fullmatch(bucket) or not all(map(PART.fullmatch, parts)):
        raise ValueError(
            f"a URL with the scheme {scheme!r} without a valid bucket and prefix; allowed: "
            f"{ALLOWED}, without '?', '#', a user or empty parts; credentials belong in the "
            "environment"
        )
    return scheme, bucket, "/".join(parts)


def connect(url: str) -> "tuple[Client, str]":
    """A client for the prefix of a URL, and the prefix's name in messages; sends no request.

    S3: the variables AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION,
    AWS_ENDPOINT_URL, …; else the profile AWS_PROFILE of ~/.aws/credentials and ~/.aws/config.
    Google Cloud: GOOGLE_APPLICATION_CREDENTIALS, or the credentials of `gcloud auth`.
    Azure: the variables AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY, ….

    Raises:
        ValueError: an unsupported URL.
        StoreError: obstore is not installed, or rejects the configuration.
    """
    scheme, bucket, prefix = split(url)
    try:
        from obstore.store import AzureStore, GCSStore, S3Store
    except ImportError:
        raise StoreError(
            f"{scheme}://{bucket}: object storage needs the package obstore. Install the extra: "
            "pip install 'streamlm[objects]'."
        ) from None
    # These options override the variable that allows http, which local servers need.
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
    except Exception as error:  # its message may contain a secret
        raise StoreError(
            f"{scheme}://{bucket}: the client rejects its configuration ({type(error).__name__}). "
            "Check the environment variables."
        ) from None
    return client, f"{scheme}://{bucket}" + (f"/{prefix}" if prefix else "")


def _aws_files() -> dict[str, Any]:
    """The settings of the AWS configuration files that the environment does not override."""
    if "AWS_ACCESS_KEY_ID" in os.environ:
        return {}
    profile = os.environ.get("AWS_PROFILE", "default")
    home = Path.home() / ".aws"
    settings: dict[str, str] = {}
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
            settings.update(parser[section])
    keys = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    if not settings.get(keys[0]):
        return {}
    given: dict[str, Any] = {key: settings[key] for key in keys if settings.get(key)}
    if "region" in settings and not {"AWS_REGION", "AWS_DEFAULT_REGION"} & os.environ.keys():
        given["region"] = settings["region"]
    return given


def is_obstores(error: Exception) -> bool:
    """Whether an error comes from the storage or the network, not from this program."""
    return isinstance(error, OSError) or type(error).__module__ == "obstore.exceptions"


def is_no_bucket(error: Exception) -> bool:
    """Whether the bucket, not only an object, is missing."""
    return _code(error) in NO_BUCKET


def is_refusal(error: Exception) -> bool:
    """Whether the storage refused the request permanently."""
    return is_no_bucket(error) or _status(error) in ("401", "403")


def reason(error: Exception) -> str:
    """The storage's code for an error, or its HTTP status."""
    return _code(error) or _status(error) or "no answer"


def refused(error: Exception, doing: str, name: str) -> StoreError:
    """The StoreError for `error`, which occurred while `doing` something to `name`."""
    if is_no_bucket(error):
        return StoreError(f"{name}: no such bucket. Check the name, or create it first.")
    if is_refusal(error):
        return StoreError(
            f"{name}: not permitted while {doing} ({reason(error)}). Check the credentials in the "
            "environment and their permissions."
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
