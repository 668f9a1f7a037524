"""How soon the demo's page is there: from its start, and from asking for it.

    python -m benchmarks.demo        # needs a chromium

Each time, `streamlm demo` is started in a process of its own, and a browser that is open already
asks for its page as soon as it answers. The first paint is the browser's first-contentful-paint.
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

from streamlm.display import output
from streamlm.machine import write_results

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PAINT = "performance.getEntriesByName('first-contentful-paint').map((entry) => entry.startTime)"


def start_once(browser: Any, folder: str) -> dict[str, float]:
    """Seconds until the server answers, until the page is painted, until it can be used."""
    began = time.monotonic()
    command = [sys.executable, "-u", "-m", "streamlm", "demo", "--store", folder, "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        assert server.stderr is not None
        line = next(line for line in server.stderr if "http://" in line)
        answers = time.monotonic() - began
        address = re.search(r"http://[\d.:]+/", line)
        assert address is not None
        page = browser.new_context().new_page()
        asked = time.monotonic()
        page.goto(address[0], wait_until="commit")
        page.wait_for_function(f"{PAINT}.length > 0")
        paint = page.evaluate(PAINT)[0] / 1000
        page.locator("#standing p").wait_for()
        usable = time.monotonic() - asked
        page.context.close()
        return {"answers": answers, "paint": paint, "both": answers + paint, "usable": usable}
    finally:
        server.terminate()
        server.wait()


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
    medians = {name: median(one[name] for one in found) for name in found[0]}
    load = os.getloadavg()[0]
    output.print(
        f"the server answers after {medians['answers']:.2f} s, the page is painted "
        f"{medians['paint']:.2f} s after it was asked for, and can be used after "
        f"{medians['usable']:.2f} s (medians; load {load:.1f})"
    )
    figures = {"medians": medians, "each": found, "load_average": load}
    write_results(options.out, settings={"repeats": options.repeats}, figures=figures)


if __name__ == "__main__":
    main()
