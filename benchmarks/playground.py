"""Memory of the playground's page while it is used: live JavaScript heap and DOM nodes, minute by minute.

    python benchmarks/playground.py --minutes 5 --out benchmarks/results/playground.csv

A headless Chromium asks one question after another in the page of a server with `shop`, with a new chat now and then,
while page and server poll tree and metrics. `heap_bytes` is measured after a garbage collection. The first row also has
what a first visit loads. Two nodes and 0.6 kB of heap a question are the undo history of Chromium's text field, which
keeps 1,000 steps: an empty page with one text field shows the same.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.server_process import ServerProcess
from benchmarks.table import Table
from shoal.provenance import commit, hardware

QUESTION = "Which things are red?"
ANSWERS_A_CHAT, SAMPLE_S = 6, 20.0


@contextmanager
def page_of(url: str) -> Iterator[Any]:
    """The playground in a headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        try:
            page = browser.new_page()
            page.goto(url)
            page.locator("#examples button").first.wait_for()
            yield page
        finally:
            browser.close()


def sample(session: Any) -> dict[str, int]:
    """Live heap and DOM nodes."""
    session.send("HeapProfiler.collectGarbage")
    counters = session.send("Memory.getDOMCounters")
    return {"heap_bytes": int(session.send("Runtime.getHeapUsage")["usedSize"]), "dom_nodes": counters["nodes"]}


def use(page: Any, seconds: float, table: Table) -> None:
    """Ask until the time is over, with a row every `SAMPLE_S` seconds."""
    session = page.context.new_cdp_session(page)
    sizes = page.evaluate("performance.getEntries().reduce((sum, entry) => sum + (entry.transferSize ?? 0), 0)")
    begin, answers, next_row = time.monotonic(), 0, 0.0
    while (now := time.monotonic() - begin) < seconds:
        if now >= next_row:
            row = {"seconds": round(now, 1), "answers": answers, **sample(session), "first_visit_bytes": int(sizes)}
            table.add(row)
            print(row, flush=True)
            next_row += SAMPLE_S
        shown = page.locator(".facts").count()
        page.fill("#question", QUESTION)
        page.press("#question", "Enter")
        page.locator(".facts").nth(shown).wait_for(timeout=60_000)
        answers += 1
        if answers % ANSWERS_A_CHAT == 0:
            for tab in ("#tab-cache", "#tab-load", "#tab-chat"):
                page.click(tab)
            page.click("#clear")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--minutes", type=float, default=5.0)
    arguments = parser.parse_args()
    command = f"python benchmarks/playground.py --minutes {arguments.minutes:g}"
    if shutil.which("chromium") is None or find_spec("playwright") is None:
        print("playground: needs Debian's chromium and Playwright (pip install '.[browser]')")
        return
    table = Table(arguments.out, {"command": command, "commit": commit(), "hardware": hardware()})
    server = ServerProcess(threads=1)
    try:
        server.wait_ready()
        with page_of(server.url) as page:
            use(page, 60 * arguments.minutes, table)
    finally:
        server.stop()


if __name__ == "__main__":
    main()
