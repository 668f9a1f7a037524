"""Job, Plan and Row: what a worker is given, and what it reports."""

from dataclasses import asdict, dataclass, field
from typing import Any, Self, TypeAlias

# One line of a report: the job's name and sources, "status" ("done" or "failed"), and figures.
Row: TypeAlias = "dict[str, Any]"
UNPACK = "streamlm.cli.unpacked:unpacked"  # how a file becomes files of text


@dataclass(frozen=True)
class Job:
    """One document to feed or to score.

    Attributes:
        name: of its session, and in the report.
        sources: its files in reading order: paths, or URLs of objects.
    """

    name: str
    sources: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "sources": list(self.sources)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(str(values["name"]), tuple(map(str, values["sources"])))


@dataclass(frozen=True)
class Plan:
    """What all jobs of a call have in common.

    Attributes:
        action: "feed" or "score".
        store: folder or URL of the sessions.
        model, device, settings: as in `streamlm.load`.
        errors: as in `Session.feed`.
        score: with "feed", also compute log-probabilities.
        session: with "score", the session that has read before them; None is an empty one.
        saving: `save_every` and `save_seconds` of `streamlm.open`.
        unpack: dotted name of the function that makes files of text of one file.
    """

    action: str
    store: str = "sessions"
    model: str | None = None
    device: str = "auto"
    settings: dict[str, Any] = field(default_factory=dict)
    errors: str = "strict"
    score: bool = False
    session: str | None = None
    saving: dict[str, Any] = field(default_factory=dict)
    unpack: str = UNPACK

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def failed(job: Job, error: str) -> Row:
    """The row of a job that has failed."""
    return {**job.to_json(), "status": "failed", "error": error}
