"""How soon the demo's page is there, from the start of its process.

    python -m benchmarks.demo        # needs a chromium

Each time, `streamlm demo` is started in a process of its own, and a browser that is open already
asks for its page as soon as the address is told. Paints are the browser's first-contentful-paint:
first that of the page which says that the demo is starting, then that of the demo itself. The
server's processor time does not depend on what else the machine does.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from streamlm.cli.display import output
from streamlm.lab.results import write_results

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PAINTS = "performance.getEntriesByName('first-contentful-paint')"
PAINTED = f"{PAINTS}.map((entry) => (performance.timeOrigin + entry.startTime) / 1000)[0]"
SAID = {
    "told": "the address is told",
    "first_paint": "the browser paints that it is starting",
    "answers": "the demo answers",
    "paint": "its page is painted",
    "usable": "and can be used",
    "processor": "processor seconds that the server had used when the demo answered",
}


def start_once(browser: Any, folder: str) -> dict[str, float]:
    """Seconds from the start of the process until each of SAID, and the last of them."""
    began = time.time()  # the browser's clock
    command = [sys.executable, "-u", "-m", "streamlm", "demo", "--store", folder, "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        assert server.stderr is not None
        line = next(line for line in server.stderr if "http://" in line)
        told = time.time()
        address = re.search(r"http://[\d.:]+/", line)
        assert address is not None
        page = browser.new_context(bypass_csp=True).new_page()
        page.goto(address[0], wait_until="commit")
        page.wait_for_function(f"{PAINTS}.length > 0")
        first_paint = page.evaluate(PAINTED)
        next(line for line in server.stderr if "the demo is at" in line)
        answers, used = time.time(), processor_seconds(server.pid)
        page.wait_for_function(f"window.gradio_config && {PAINTS}.length > 0")
        paint = page.evaluate(PAINTED)
        page.locator("#position p").wait_for()
        usable = time.time()
        page.context.close()
        times = [told, first_paint, answers, paint, usable]
        seconds = [*(at - began for at in times), used]
        return dict(zip(SAID, seconds, strict=True))
    finally:
        server.terminate()
        server.wait()


def processor_seconds(pid: int) -> float:
    """What a process has used until now, in all its threads; NaN where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure, print, and write the figures down."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/demo.json"))
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    found = []
    with sync_playwright() as started, tempfile.TemporaryDirectory() as folder:
        browser = started.chromium.launch(executable_path=chromium, args=list(FLAGS))
        for _ in range(options.repeats):
            found.append(start_once(browser, folder))
            output.print({name: round(seconds, 2) for name, seconds in found[-1].items()})
        browser.close()
    medians = {name: median(one[name] for one in found) for name in SAID}
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    output.print(f"seconds from the start, medians ({cores} cores, load {load:.1f}):")
    for name, said in SAID.items():
        output.print(f"  {medians[name]:5.2f}  {said}")
    figures = {"medians": medians, "each": found, "cores": cores, "load_average": load}
    write_results(options.out, settings={"repeats": options.repeats}, figures=figures)


if __name__ == "__main__":
    main()
