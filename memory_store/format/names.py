"""The layout of a session: the keys of its files, and the names that are allowed in them.

Every name is matched against one of these patterns before it becomes part of a key, whether it
comes from a caller or from a file. No matching name can lead out of the session.
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
PINNED = "pinned"  # a copy of each pin
RECORD = "record.json"
PACKED = ".zip"  # commits of schema 1 are folders


def branch_folder(branch: str) -> str:
    """The folder of a branch's refs.

    Raises:
        ValueError: not a valid branch name.
    """
    if not isinstance(branch, str) or not BRANCH.fullmatch(branch):
        raise ValueError(
            f"branch {branch!r}: a branch name has 1 to 128 characters of A-Z, a-z, 0-9, '.', '_', "
            "'-' and does not begin with '.'"
        )
    return f"{REFS}/{branch}"


def ref_key(branch: str, seq: int) -> str:
    """The file of ref number `seq` of a branch."""
    return f"{branch_folder(branch)}/{seq:012d}.json"


def commit_key(name: str) -> str:
    """The file of a commit, or its folder for a commit of schema 1.

    Raises:
        ValueError: not a valid commit name.
    """
    if not COMMIT.fullmatch(name):
        raise ValueError(
            f"commit {name!r}: a commit's name looks like 000000004096-<32 hex digits>.zip"
        )
    return f"{COMMITS}/{name}"


def is_packed(name: str) -> bool:
    """Whether a commit is one file, not a folder."""
    return name.endswith(PACKED)


def document_key(name: str) -> str:
    """The file that contains the attributes of a commit."""
    return commit_key(name) if is_packed(name) else f"{commit_key(name)}/zarr.json"


def new_commit_name(position: int) -> str:
    """A unique name for a commit."""
    return f"{position:012d}-{uuid.uuid4().hex}{PACKED}"


def log_key(name: str) -> str:
    """The file with the record and the token ids of a commit whose snapshot was deleted.

    A folder for a commit of schema 1.
    """
    commit_key(name)  # refuses an invalid name
    return f"{LOG}/{name}"


def record_key(name: str) -> str:
    """The file that contains the record of a commit whose snapshot was deleted."""
    return log_key(name) if is_packed(name) else f"{log_key(name)}/{RECORD}"


def past_key(name: str) -> str:
    """The file with the record of a commit whose token ids were deleted too."""
    commit_key(name)
    return f"{PAST}/{name.removesuffix(PACKED)}.json"


def pin_key(name: str) -> str:
    """The file of a pin.

    Raises:
        ValueError: not a valid pin name.
    """
    if not isinstance(name, str) or not BRANCH.fullmatch(name):
        raise ValueError(
            f"pin {name!r}: a pin name has 1 to 128 characters of A-Z, a-z, 0-9, '.', '_', '-' and "
            "does not begin with '.'"
        )
    return f"{PINS}/{name}.json"


def pinned_key(name: str) -> str:
    """The copy of a pin, which shows that the pin was set if its own file vanishes."""
    return f"{PINNED}/{pin_key(name).removeprefix(f'{PINS}/')}"
