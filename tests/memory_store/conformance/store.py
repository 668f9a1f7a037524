"""What every memory store does, whatever keeps its files: each kind's tests subclass this."""

from tests.memory_store.conformance.branches import BranchConformance
from tests.memory_store.conformance.commits import CommitConformance
from tests.memory_store.conformance.damage import DamageConformance
from tests.memory_store.conformance.sessions import SessionConformance
from tests.memory_store.conformance.upkeep import UpkeepConformance


class StoreConformance(
    CommitConformance, BranchConformance, SessionConformance, DamageConformance, UpkeepConformance
):
    """Subclasses have a fixture `place`: a `Place` where there is nothing yet."""
