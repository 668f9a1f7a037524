"""What a million sessions cost, and how many machines they need, from measured figures.

    python -m benchmarks.fleet
    python -m benchmarks.fleet --sessions 100000 --rates 10 100 --read 200 --write 100

Bytes, speeds and waits are those of the result files; requests to object storage are those that the
store's tests count. The rest are assumptions, and options: who asks how much how often, prices, and
how long object storage takes. Machines are found by simulating one worker under its part of the
requests (`benchmarks.tools.fleet_worker`) until the slowest percent of them is fast enough.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.tools.fleet_worker import Traffic, Worker, response_times
from streamlm.cli.display import bar, output
from streamlm.lab.results import write_results
from streamlm.units import size_text

RESULTS = Path("benchmarks/results")
# Counted by tests/memory_store/backends/test_object_storage.py.
PUTS, GETS, RESUME_GETS = 2, 2, 21
# Requests that wait for each other. The 16 commits are fetched at once.
COMMIT_WAITS, RESUME_WAITS = PUTS + GETS, 5 + 1


def measured(folder: Path) -> dict[str, Any]:
    """The figures of the bundled model that the calculation needs."""
    serve, stream, store = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["figures"]
        for name in ("serve", "stream", "store")
    )
    return {
        "state_bytes": serve["memory"]["state"],
        "open_bytes": serve["memory"]["process"],
        "bytes_a_token": store["years"]["newest 32, older ones by age"]["bytes_a_token"],
        "rows": [0, *(each["sessions"] for each in serve["throughput"])],
        "speeds": [0.0, *(each["engine"] for each in serve["throughput"])],
        "reading": stream["reading_tokens_per_second"],
    }


def at_rest(facts: dict[str, Any], options: argparse.Namespace) -> dict[str, float]:
    """Bytes and money of sessions that nobody uses, and of an hour of using one of them."""
    turns = options.turns
    tokens = turns * (options.read + options.write)
    puts, gets = PUTS * turns, GETS * turns + RESUME_GETS
    stored = facts["state_bytes"] + facts["bytes_a_token"] * options.tokens
    return {
        "bytes_a_session": stored,
        "bytes": stored * options.sessions,
        "dollars_a_month": stored * options.sessions / 1e9 * options.gb_month,
        "bytes_in_memory": facts["open_bytes"] * options.sessions,
        "tokens_an_hour": tokens,
        "puts_an_hour": puts,
        "gets_an_hour": gets,
        "dollars_an_hour_of_use": (puts * options.put_1000 + gets * options.get_1000) / 1e3,
        "commits_a_second_a_prefix": min(options.prefix_puts / PUTS, options.prefix_gets / GETS),
    }


def fleet(facts: dict[str, Any], rate: float, options: argparse.Namespace) -> dict[str, Any]:
    """The fewest workers that answer so many requests a second fast enough."""
    worker = Worker(
        rows=facts["rows"],
        speeds=facts["speeds"],
        reading=facts["reading"],
        max_rows=options.rows,
        held=max(1, int(options.memory * 2**30 / options.cores / facts["open_bytes"])),
        resume=RESUME_WAITS * options.object_seconds,
        commit=COMMIT_WAITS * options.object_seconds,
    )
    # Fewer would not keep up: the time of the core that a request takes at full speed.
    seconds = options.read / worker.reading + options.write / worker.speed(options.rows)
    low = high = max(1, math.ceil(rate * seconds))
    idle = simulated(worker, rate, 1000 * low, options)["p99"]
    if idle > options.target:
        raise ValueError(
            f"--target {options.target}; allowed: at least {idle:.2f}, of idle workers"
        )
    found = simulated(worker, rate, high, options)
    while found["p99"] > options.target:
        low, high = high + 1, math.ceil(high * 1.5) + 1
        found = simulated(worker, rate, high, options)
    while low < high:
        middle = (low + high) // 2
        tried = simulated(worker, rate, middle, options)
        if tried["p99"] > options.target:
            low = middle + 1
        else:
            high, found = middle, tried
    machines = math.ceil(high / options.cores)
    return {**found, "machines": machines, "dollars_an_hour": machines * options.machine_hour}


def simulated(worker: Worker, rate: float, n: int, options: argparse.Namespace) -> dict[str, Any]:
    """Response times where n workers share the sessions."""
    traffic = Traffic(
        rate=rate / n,
        sessions=max(1, options.active // n),
        read=options.read,
        write=options.write,
    )
    times, hits = response_times(worker, traffic, requests=options.requests, seed=options.seed)
    p50, p99 = np.quantile(times, [0.5, 0.99])
    return {"rate": rate, "workers": n, "p50": float(p50), "p99": float(p99), "in_memory": hits}


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fleet",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--sessions", type=int, default=1_000_000, help="that exist")
    add("--active", type=int, default=50_000, help="those that requests are of")
    add("--tokens", type=int, default=100_000, help="that a session has read")
    add("--turns", type=int, default=60, help="requests of a session in an hour of use")
    add("--read", type=float, default=100, help="mean tokens that a request reads")
    add("--write", type=float, default=100, help="mean tokens that a request writes")
    add("--rates", type=float, nargs="+", default=[10.0, 100.0, 1000.0], help="requests a second")
    add("--target", type=float, default=15.0, help="seconds for 99 of 100 requests")
    add("--rows", type=int, default=64, help="of a worker")
    add("--cores", type=int, default=16, help="of a machine, with a worker on each")
    add("--memory", type=float, default=64, help="GiB of a machine for sessions")
    add("--machine-hour", type=float, default=0.7, help="dollars for a machine's hour")
    add("--object-seconds", type=float, default=0.1, help="for a request to object storage")
    add("--gb-month", type=float, default=0.023, help="dollars for a GB's month")
    add("--put-1000", type=float, default=0.005, help="dollars for 1,000 PUTs")
    add("--get-1000", type=float, default=0.0004, help="dollars for 1,000 GETs")
    add("--prefix-puts", type=float, default=3500, help="PUTs a second of a prefix")
    add("--prefix-gets", type=float, default=5500, help="GETs a second of a prefix")
    add("--requests", type=int, default=20_000, help="simulated for each number of workers")
    add("--seed", type=int, default=1)
    add("--results", type=Path, default=RESULTS, help="the folder of measured figures")
    add("--out", type=Path, default=RESULTS / "fleet.json")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parsed(arguments)
    facts = measured(options.results)
    resting = at_rest(facts, options)
    with bar("simulating", total=len(options.rates)) as (progress, task):
        fleets = []
        for rate in options.rates:
            fleets.append(fleet(facts, rate, options))
            progress.advance(task)
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    write_results(
        options.out,
        settings={**settings, "results": str(options.results)},
        figures={"measured": facts, "at_rest": resting, "fleets": fleets},
    )
    n = f"{options.sessions:,} sessions"
    output.print(
        f"{n} of {options.tokens:,} tokens: {size_text(int(resting['bytes']))} at rest, "
        f"${resting['dollars_a_month']:,.0f} a month; all open: "
        f"{size_text(int(resting['bytes_in_memory']))}"
    )
    output.print(
        f"an hour of using one: {resting['puts_an_hour']:,} PUTs, {resting['gets_an_hour']:,} "
        "GETs, "
        f"${resting['dollars_an_hour_of_use']:.5f}; a prefix takes "
        f"{resting['commits_a_second_a_prefix']:,.0f} commits a second"
    )
    table = Table("requests/s", "workers", "machines", "$/h", "p50, s", "p99, s", "in memory")
    for each in fleets:
        table.add_row(
            f"{each['rate']:g}",
            f"{each['workers']:,}",
            f"{each['machines']:,}",
            f"{each['dollars_an_hour']:,.2f}",
            f"{each['p50']:.1f}",
            f"{each['p99']:.1f}",
            f"{each['in_memory']:.0%}",
        )
    output.print(table)


if __name__ == "__main__":
    main()
