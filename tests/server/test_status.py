"""What a server says of itself, its errors, its logs, and whom it lets in."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from apps.server.errors import api_error
from apps.server.keys import Keys
from apps.server.logs import LOGGER, JsonLines
from memory_store import Conflict, Locked, NotFound, StoreError
from memory_store.errors import StoreFull
from streamlm.engine import Busy, Cancelled
from streamlm.sessions.one_thread import InUse

ADA, BOB = "ada-has-this-long-key", "bob-has-another-long-key"


def test_health_and_models(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}
    service = client.app.state.service
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == service.name and "/" not in model["id"]
    assert client.get(f"/v1/models/{service.name}").json() == model
    missing = client.get("/v1/models/gpt-4")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"
    service.stopping = True
    assert client.get("/health").status_code == 200
    assert client.get("/ready").status_code == 503
    stopping = client.get("/v1/models")
    assert stopping.status_code == 503 and stopping.headers["retry-after"] == "1"


def test_errors_of_routing_have_the_shape_of_openai(client: TestClient) -> None:
    for method, path, status in (("GET", "/v1/none", 404), ("POST", "/health", 405)):
        answer = client.request(method, path)
        assert answer.status_code == status
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and path in error["message"]


def test_errors_and_their_statuses() -> None:
    for error, status in (
        (Busy("9 wait"), 503),
        (Cancelled("closed"), 503),
        (NotFound("none"), 404),
        (Locked("held"), 409),
        (InUse("used"), 409),
        (Conflict("moved"), 409),
        (StoreFull("full"), 507),
        (StoreError("broken"), 500),
        (RuntimeError("secret"), 500),
    ):
        found = api_error(error)
        assert found.status == status and "secret" not in str(found)
    assert api_error(Busy("")).headers == {"Retry-After": "1"}
    found = api_error(ValueError("top_p = 2; allowed: above 0, at most 1"))
    assert (found.status, found.param) == (400, "top_p")


def test_request_ids_and_logs(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger(LOGGER).propagate = True
    caplog.set_level(logging.INFO, LOGGER)
    assert client.get("/health", headers={"X-Request-Id": "one"}).headers["x-request-id"] == "one"
    odd = client.get("/none", headers={"X-Request-Id": "a b"}).headers["x-request-id"]
    assert len(odd) == 24
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    assert [(line["id"], line["status"], line["path"]) for line in lines] == [
        ("one", 200, "/health"),
        (odd, 404, "/none"),
    ]
    assert lines[0]["event"] == "request" and lines[0]["level"] == "info"


def test_another_host_is_refused(client: TestClient) -> None:
    """As after DNS rebinding, and as a page of another origin would ask."""
    for headers in (
        {"Host": "evil.example:8000"},
        {"Host": ""},
        {"Host": "127.0.0.1.evil.example"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ):
        answer = client.get("/v1/models", headers=headers)
        assert answer.status_code == 403, headers
        assert answer.json()["error"]["code"] == "wrong_host"
    for host in ("localhost:8000", "[::1]:8000", "LOCALHOST"):
        assert client.get("/v1/models", headers={"Host": host}).status_code == 200


def test_keys(serve: Callable[..., TestClient], tmp_path: Path) -> None:
    client = serve(keys=Keys([(ADA, "ada")]))
    assert client.get("/health").status_code == 200
    for path in ("/v1/models", "/metrics", "/none"):
        for headers in (
            {},
            {"Authorization": "Bearer"},
            {"Authorization": f"Bearer {ADA}x"},
            {"Authorization": f"Bearer {ADA[:-1]}"},
            {"Authorization": f"Basic {ADA}"},
        ):
            answer = client.get(path, headers=headers)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] == "invalid_api_key"
    good = client.get(
        "/v1/models", headers={"Authorization": f"bearer {ADA}", "Host": "api.example"}
    )
    assert good.status_code == 200  # whoever has a key may come by any name


def test_a_file_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# ours\n\nada {ADA}\nada {ADA}-new\n{BOB}\n")
    keys = Keys.read(path)
    assert keys.owner(ADA) == keys.owner(f"{ADA}-new") == "ada"
    owner = keys.owner(BOB)
    assert owner is not None and owner.startswith("~") and BOB not in owner
    assert keys.owner("") is None and keys.owner("é\ud800") is None
    for wrong in ("", "# none", "short", f"../x {ADA}", f"a b {ADA}", f"{ADA}\n{ADA}", f"~x {ADA}"):
        path.write_text(wrong)
        with pytest.raises(ValueError, match="allowed: ") as error:
            Keys.read(path)
        assert ADA not in str(error.value)
