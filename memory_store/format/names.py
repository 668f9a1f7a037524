"""Where things lie in a session, and what names they may have.

Every name that becomes part of a key is matched against one of these patterns first, whether it
comes from a caller or from a file: none of them can lead out of the session.
"""

import re
import uuid

BRANCH = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
COMMIT = re.compile(r"[0-9]{12}-[0-9a-f]{32}(\.zip)?")
REF_FILE = re.compile(r"([0-9]{12})\.json")
ARRAY = re.compile(r"(?!(?i:zarr\.json)\Z)[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
ID = re.compile(r"[0-9a-f]{64}")
SESSION = re.compile(r"[0-9a-f]{32}")
MAX_NUMBER = 10**12 - 1  # positions and sequence numbers have twelve digits

TOKENS = "tokens"  # the array of token ids in every commit
SESSION_FILE = "session.json"
REFS = "refs"
COMMITS = "commits"
LOG = "log"
LOST = "lost"
PAST = "past"
PINS = "pins"
RECORD = "record.json"
PACKED = ".zip"  # commits of the first versions were folders


def branch_folder(branch: str) -> str:
    """The folder of a branch's refs.

    Raises:
        ValueError: not a name for a branch.
    """
    if not isinstance(branch, str) or not BRANCH.fullmatch(branch):
        raise ValueError(
            f"branch {branch!r}: a branch name has 1 to 128 of A-Z, a-z, 0-9, '.', '_', '-' and "
            "does not begin with '.'"
        )
    return f"{REFS}/{branch}"


def ref_key(branch: str, seq: int) -> str:
    """The file of a branch's ref number `seq`."""
    return f"{branch_folder(branch)}/{seq:012d}.json"


def commit_key(name: str) -> str:
    """The file of a commit, or its folder if an early version wrote it.

    Raises:
        ValueError: not a name of a commit.
    """
    if not COMMIT.fullmatch(name):
        raise ValueError(
            f"commit {name!r}: a commit's name looks like 000000004096-<32 hex digits>.zip"
        )
    return f"{COMMITS}/{name}"


def is_packed(name: str) -> bool:
    """Whether a commit is one file."""
    return name.endswith(PACKED)


def document_key(name: str) -> str:
    """The file that says what a commit is."""
    return commit_key(name) if is_packed(name) else f"{commit_key(name)}/zarr.json"


def new_commit_name(position: int) -> str:
    """A name that no other commit has."""
    return f"{position:012d}-{uuid.uuid4().hex}{PACKED}"


def log_key(name: str) -> str:
    """What is left of a commit whose state was let go: its record and its token ids.

    A file, or a folder if the commit was one.
    """
    commit_key(name)  # refuses what is no name
    return f"{LOG}/{name}"


def record_key(name: str) -> str:
    """The file that has the record of such a commit."""
    return log_key(name) if is_packed(name) else f"{log_key(name)}/{RECORD}"


def past_key(name: str) -> str:
    """The record of a commit of which nothing else is left."""
    commit_key(name)
    return f"{PAST}/{name.removesuffix(PACKED)}.json"


def pin_key(name: str) -> str:
    """The file of a pin.

    Raises:
        ValueError: not a name for a pin.
    """
    if not isinstance(name, str) or not BRANCH.fullmatch(name):
        raise ValueError(
            f"pin {name!r}: a pin's name has 1 to 128 of A-Z, a-z, 0-9, '.', '_', '-' and does "
            "not begin with '.'"
        )
    return f"{PINS}/{name}.json"
