"""The conformance tests of a memory store on any medium; tests of each medium subclass them."""

from tests.memory_store.conformance.branches import BranchConformance
from tests.memory_store.conformance.commits import CommitConformance
from tests.memory_store.conformance.damage import DamageConformance
from tests.memory_store.conformance.logs import LogConformance
from tests.memory_store.conformance.lost_refs import LostRefsConformance
from tests.memory_store.conformance.sessions import SessionConformance
from tests.memory_store.conformance.upkeep import UpkeepConformance


class StoreConformance(
    CommitConformance,
    BranchConformance,
    SessionConformance,
    DamageConformance,
    UpkeepConformance,
    LogConformance,
    LostRefsConformance,
):
    """Subclasses define a fixture `place`: an empty `Place`."""
