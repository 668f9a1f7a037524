"""The Dockerfile and the compose file name what is there, and commands that exist."""

import json
import re
import shlex
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import CommandLine

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their arguments; continued lines are joined."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines)]


def of(name: str) -> list[str]:
    found = [rest for each, rest in instructions() if each == name]
    assert found, name
    return found


def test_every_copied_path_is_there_and_sent() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert lines[0] == "*"
    sent = {line[1:] for line in lines if line.startswith("!")}
    copied = [path for rest in of("COPY") for path in shlex.split(rest)[:-1]]
    assert set(copied) == sent
    assert all((ROOT / path).exists() for path in copied)


def test_the_image_has_all_packages_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = project["tool"]["setuptools"]["packages"]["find"]["include"]
    copied = [path for rest in of("COPY") for path in shlex.split(rest)[:-1]]
    packages = [path for path in copied if (ROOT / path / "__init__.py").exists()]
    assert len(packages) == len(included)
    assert all(any(fnmatch(package, each) for each in included) for package in packages)
    assert {project["project"]["readme"], *project["project"]["license-files"]} <= set(copied)


def test_pip_installs_extras_that_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', " ".join(of("RUN")))
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    assert {"server", "objects"} <= set(extras.split(","))
    assert "streamlm" in project["scripts"]


def test_commands_have_options_that_exist(cli: CommandLine) -> None:
    ((script, command, *fixed),) = map(json.loads, of("ENTRYPOINT"))
    (own,) = map(json.loads, of("CMD"))
    assert script == "streamlm"
    given = [*fixed, *own, *compose()["services"]["server"]["command"], "--without-keys"]
    known = cli.works(command, "--help").out
    options = [word for word in given if word.startswith("--")]
    assert len(options) > 5
    for option in options:
        assert re.search(rf"{option}\b", known), option
    assert fixed[fixed.index("--port") + 1] in of("EXPOSE")


def compose() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    return found


def test_the_compose_file_names_what_is_there() -> None:
    found = compose()
    services = found["services"]
    for service in services.values():
        assert ("build" in service) != ("image" in service)
        if build := service.get("build"):
            context = (DEPLOY / build["context"]).resolve()
            assert context == ROOT and (context / build["dockerfile"]).is_file()
        else:
            assert not service["image"].endswith(":latest") and ":" in service["image"]
        assert set(service.get("depends_on", ())) <= services.keys()
        assert set(service.get("secrets", ())) <= found["secrets"].keys()
        for volume in service.get("volumes", ()):
            assert volume.partition(":")[0] in found["volumes"]
    listening = services["server"]["ports"]
    assert all(port.startswith("127.0.0.1:") for port in listening)
    host = services["server"]["environment"]["AWS_ENDPOINT_URL"]
    assert re.fullmatch(r"http://(\w+):9000", host)[1] in services  # type: ignore[index]
