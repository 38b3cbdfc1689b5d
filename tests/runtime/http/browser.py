"""Chromium for tests: Debian's, another one on the PATH, or Playwright's own; skips with the way to get one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

MISSING = "no Chromium: apt-get install chromium, or .venv/bin/playwright install --with-deps chromium"
_NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser of Playwright. Skips the test where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install '.[browser]'")
    with api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = next(filter(None, map(shutil.which, _NAMES)), own if Path(own).exists() else None)
        if found is None:
            pytest.skip(MISSING)
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, url: str, *, width: int = 1440, scheme: str = "light", **options: Any) -> Iterator[Any]:
    """A page whose console must stay clean: `page.complaints` is checked to be empty at the end.

    A test that loses the server on purpose clears it.
    """
    height = 900 if width > 500 else 844
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
    page = context.new_page()
    page.complaints = []
    page.on("console", lambda m: page.complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    try:
        page.goto(url)
        yield page
        assert page.complaints == []
    finally:
        context.close()


def memory(page: Any) -> tuple[int, int]:
    """Bytes of live JavaScript objects and DOM nodes, after a garbage collection."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    size = int(session.send("Runtime.getHeapUsage")["usedSize"])
    nodes = int(session.send("Memory.getDOMCounters")["nodes"])
    session.detach()
    return size, nodes
