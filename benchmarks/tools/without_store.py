"""Lets streamlm be imported where the store's checksum package is missing, as on a bare GPU image.

Only sessions on disk compute checksums, and nothing that is measured here keeps one. Also a pytest
plugin: `pytest -p benchmarks.tools.without_store`.
"""

import importlib.util
import sys
from types import ModuleType

if importlib.util.find_spec("google_crc32c") is None:
    sys.modules["google_crc32c"] = ModuleType("google_crc32c")
