"""Lets streamlm be imported where the store's checksum package is missing, as on a bare GPU image.

Only sessions on disk compute checksums; `STORE` says whether they can be kept here. Also a pytest
plugin: `pytest -p benchmarks.tools.without_store`.
"""

import sys
from types import ModuleType

try:
    import google_crc32c  # noqa: F401
except ImportError:
    STORE = False
    sys.modules["google_crc32c"] = ModuleType("google_crc32c")
else:
    STORE = True
