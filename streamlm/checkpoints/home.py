"""The user's cache of streamlm: downloaded models, and digests of large files."""

import os
from pathlib import Path


def home() -> Path:
    """`$STREAMLM_HOME`, or the user's cache folder for streamlm. It may not exist yet."""
    given = os.environ.get("STREAMLM_HOME")
    if given:
        return Path(given).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("streamlm", appauthor=False))
