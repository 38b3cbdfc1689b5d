"""Memory of the playground's page while it is used: live JavaScript heap and DOM nodes, minute by minute.

    python benchmarks/playground.py --minutes 6 --out benchmarks/results/playground.csv \\
        --growth benchmarks/results/playground_growth.csv

In a headless Chromium a script in the page types one question after another, with a new chat after six, while the
page polls tree and metrics. A row comes after a new chat and a garbage collection, so that all rows are of the same
view. The first row also has what a first visit loads. The charts keep their latest 150 points.

With --growth the heap is written down twice, after 48 answers and at the end, and a table says what there is more of:
objects and bytes by kind and constructor. It holds what the browser itself keeps about a page too.

The script stands in the page because a call from outside leaves about 0.4 kB there, in an empty page too.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.server_process import ServerProcess
from benchmarks.table import Table
from shoal.provenance import commit, hardware

QUESTION = "Which things are red?"
ROW_S = 20.0
FIRST_SNAPSHOT = 48
"""Answers before it: the browser has compiled by then what it compiles."""
TALK = """async (question) => {
  const $ = (id) => document.getElementById(id);
  const until = async (done) => { while (!done()) await new Promise((go) => setTimeout(go, 20)); };
  for (let at = 1; at <= 6; at += 1) {
    $("question").focus();
    document.execCommand("insertText", false, question);
    $("ask").requestSubmit();
    await until(() => document.querySelectorAll(".facts").length === at && $("stop").disabled);
  }
  for (const tab of ["tab-cache", "tab-load", "tab-chat", "clear"]) $(tab).click();
  return 6;
}"""


def chromium() -> str | None:
    """Debian's, or None for Playwright's own."""
    return shutil.which("chromium")


@contextmanager
def page_of(url: str) -> Iterator[Any]:
    """The playground in a headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        try:
            page = browser.new_page()
            page.goto(url)
            page.locator("#examples button").first.wait_for()
            yield page
        finally:
            browser.close()


def sample(session: Any) -> dict[str, int]:
    """Live heap and DOM nodes. One collection leaves what ended a moment before."""
    for _ in range(3):
        time.sleep(0.3)
        session.send("HeapProfiler.collectGarbage")
    counters = session.send("Memory.getDOMCounters")
    return {"heap_bytes": int(session.send("Runtime.getHeapUsage")["usedSize"]), "dom_nodes": counters["nodes"]}


class Heap:
    """Objects and bytes of a page's heap by (kind, constructor), from a snapshot of Chromium's."""

    def __init__(self, session: Any):
        parts: list[str] = []
        keep = lambda event: parts.append(event["chunk"])  # noqa: E731
        session.on("HeapProfiler.addHeapSnapshotChunk", keep)
        session.send("HeapProfiler.takeHeapSnapshot", {"reportProgress": False})
        session.remove_listener("HeapProfiler.addHeapSnapshotChunk", keep)
        snapshot = json.loads("".join(parts))
        meta, strings = snapshot["snapshot"]["meta"], snapshot["strings"]
        kinds, width = meta["node_types"][0], len(meta["node_fields"])
        kind, name, size = (meta["node_fields"].index(field) for field in ("type", "name", "self_size"))
        self.objects, self.bytes = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        for at in range(0, len(snapshot["nodes"]), width):
            node = snapshot["nodes"][at : at + width]
            text = kinds[node[kind]] in ("string", "concatenated string", "sliced string", "number")
            key = kinds[node[kind]], "" if text else strings[node[name]][:60]
            self.objects[key] += 1
            self.bytes[key] += node[size]


def growth(first: Heap, last: Heap, answers: int, table: Table) -> None:
    """A row for all, then one for each kind of object that took 1 kB more."""
    total = last.bytes.total() - first.bytes.total()
    table.add({"answers": answers, "kind": "all", "constructor": "", "objects": "", "bytes": total})
    more = Counter({key: size - first.bytes[key] for key, size in last.bytes.items()})
    for key, size in more.most_common():
        if size >= 1000:
            kind, constructor = key
            objects = last.objects[key] - first.objects[key]
            table.add({"answers": answers, "kind": kind, "constructor": constructor, "objects": objects, "bytes": size})


def use(page: Any, seconds: float, table: Table, grown: Table | None) -> None:
    """Ask until the time is over, with a row every `ROW_S` seconds."""
    session, first = page.context.new_cdp_session(page), None
    sizes = page.evaluate("performance.getEntries().reduce((sum, entry) => sum + (entry.transferSize ?? 0), 0)")
    begin, answers, next_row = time.monotonic(), 0, 0.0
    while (now := time.monotonic() - begin) < seconds:
        if now >= next_row:
            row = {"seconds": round(now, 1), "answers": answers, **sample(session), "first_visit_bytes": int(sizes)}
            table.add(row)
            print(row, flush=True)
            next_row += ROW_S
        answers += page.evaluate(TALK, QUESTION)
        if grown is not None and answers == FIRST_SNAPSHOT:
            sample(session)
            first = Heap(session)
    if grown is not None and first is not None:
        sample(session)
        growth(first, Heap(session), answers - FIRST_SNAPSHOT, grown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--growth", type=Path, default=None, help="write a table of what grew, by constructor")
    arguments = parser.parse_args()
    command = f"python benchmarks/playground.py --minutes {arguments.minutes:g}"
    if find_spec("playwright") is None:
        print("playground: needs Playwright (pip install '.[browser]') and a Chromium")
        return
    made_by = {"command": command, "commit": commit(), "hardware": hardware()}
    table = Table(arguments.out, made_by)
    grown = Table(arguments.growth, made_by) if arguments.growth else None
    server = ServerProcess(threads=1)
    try:
        server.wait_ready()
        with page_of(server.url) as page:
            use(page, 60 * arguments.minutes, table, grown)
    finally:
        server.stop()


if __name__ == "__main__":
    main()
