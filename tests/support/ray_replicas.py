"""Two replicas on a local Ray, one of which is killed; prints what each request was answered.

python -m tests.support.ray_replicas MODEL STORE
"""

import json
import os
import signal
import socket
import sys
import urllib.error
import urllib.request
from typing import Any

import ray
from ray import serve

from deploy.ray_serve import app


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def ask(port: int, session: str, *, named: bool) -> tuple[int, int]:
    """Read and write a few tokens; the status, and the session's position or -1."""
    fields = {"session": session, "prompt": "Call me", "max_tokens": 3, "seed": 1}
    headers = {"Content-Type": "application/json"}
    if named:
        headers["serve_multiplexed_model_id"] = session
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", json.dumps(fields).encode(), headers
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)["session"]["position"]
    except urllib.error.HTTPError as error:
        return error.code, -1


def main(model: str, store: str) -> dict[str, Any]:
    """What was answered with and without the header, and after a replica was killed."""
    names = ("a", "b", "c", "d")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(app({"model": model, "store": store, "replicas": "2"}), name="streamlm")
    found: dict[str, Any] = {}
    found["named"] = [ask(port, name, named=True) for _ in range(3) for name in names]
    found["unnamed"] = [ask(port, "a", named=False) for _ in range(12)]
    replicas = [
        each
        for each in ray.util.list_named_actors(all_namespaces=True)
        if "Replica" in each["name"]
    ]
    pid = ray.get(ray.get_actor(**replicas[0]).__ray_call__.remote(lambda _: os.getpid()))
    os.kill(pid, signal.SIGKILL)
    found["replicas"] = len(replicas)
    found["killed"] = [ask(port, name, named=True) for _ in range(4) for name in names]
    serve.shutdown()
    ray.shutdown()
    return found


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
