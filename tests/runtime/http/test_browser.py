"""The playground in a real browser: chat, canvas, comparison, cache, load, loss of the server, hostile text.

SHOAL_SCREENSHOTS=docs/screenshots keeps pictures of the page there.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .browser import chromium, memory, opened
from .process import ServerProcess, free_port

pytestmark = pytest.mark.slow
FLAGS = ("--kv-cache-tokens", "4096")
QUESTION = "What do the red apple and the blue pear cost together?"
HOSTILE = '<script>document.title = "owned"</script>\u202e\x07<img src=x onerror=alert(1)>'
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as made:
        yield made


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(browser, port, tmp_path_factory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("browser") / "server.log"
    with ServerProcess(log, *FLAGS, "--port", str(port)) as process:
        yield process


def picture(page: Any, name: str) -> None:
    folder = os.environ.get("SHOAL_SCREENSHOTS")
    if folder:
        image = Image.open(io.BytesIO(page.screenshot()))
        image.convert("RGB").quantize(96).save(Path(folder) / f"{name}.png", optimize=True)


def ask(page: Any, question: str, answers: int = 1) -> None:
    """Send a question and wait until `answers` more answers are complete."""
    before = page.locator(".facts").count()
    page.fill("#question", question)
    page.press("#question", "Enter")
    page.locator(".facts").nth(before + answers - 1).wait_for(timeout=60_000)


def no_serious_fault(page: Any) -> None:
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    assert [(fault["id"], fault["nodes"][0]["html"]) for fault in found if fault["impact"] in SERIOUS] == []


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark"), (1440, "dark"), (390, "light")])
def test_a_visitor_asks_watches_and_sees_what_the_cache_did(browser, server, width, scheme):
    """Each example works with the bundled model; cells fill in; the second answer starts from the cache."""
    with opened(browser, server.url, width=width, scheme=scheme) as page:
        page.locator("#examples button").nth(2).wait_for()
        assert page.locator("#examples button").count() == 3
        picture(page, f"intro-{width}-{scheme}")
        no_serious_fault(page)
        page.locator("#examples button").nth(0).click()
        page.locator(".cell.full").first.wait_for()
        page.locator(".facts").first.wait_for(timeout=60_000)
        assert page.locator(".said").inner_text() == "42 + 17 = 59"
        texts = [text.strip() for text in page.locator(".cell.full").all_inner_texts()]
        assert "".join(texts).replace(" ", "") == "42+17=59"
        ask(page, "Which things are red?")
        assert page.locator(".said").nth(1).inner_text() == "apple, plum"
        assert "The cache had already read the first" in page.locator(".cache-words").nth(1).inner_text()
        page.locator(".answer").nth(1).scroll_into_view_if_needed()
        picture(page, f"chat-{width}-{scheme}")
        no_serious_fault(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.click("#tab-cache")
        page.locator(".node .bar").first.wait_for()
        page.fill("#prompt", "How much is the blue pear?")
        page.click("#match button")
        page.locator(".prompt").wait_for()
        assert page.locator(".prompt mark").first.inner_text().startswith("<|system|>Prices:")
        assert "layers deep" in page.locator("#matched p").inner_text()
        picture(page, f"cache-{width}-{scheme}")
        no_serious_fault(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.click("#tab-load")
        page.locator(".chart b").first.wait_for()
        picture(page, f"load-{width}-{scheme}")
        no_serious_fault(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_slider_goes_back_and_the_canvas_replays(browser, server):
    with opened(browser, server.url) as page:
        page.locator("#examples button").first.wait_for()
        ask(page, QUESTION)
        page.locator('input[type="range"]').fill("1")
        early = page.locator(".cell.full").count()
        page.locator('input[type="range"]').fill("0")
        assert (page.locator(".cell.full").count(), page.locator(".cell.end").count()) == (0, 0)
        page.get_by_role("button", name="Replay").click()
        page.locator(".cell.full").nth(6).wait_for()
        assert early < page.locator(".cell.full").count()
        assert page.locator(".cell.last").count() == 3  # four blocks of eight
        assert "sure" in page.locator(".cell.full").first.get_attribute("title")


def test_two_modes_side_by_side_and_retry(browser, server):
    with opened(browser, server.url) as page:
        page.locator("#examples button").first.wait_for()
        ask(page, QUESTION)
        page.select_option("#other", "none")
        ask(page, "Which is cheaper, the black chair or the green lamp?", answers=2)
        page.locator(".comparison", has_text="computing").wait_for()
        words = page.locator(".comparison").last.inner_text()
        assert words.startswith("The answers are the same. bicache did ")
        assert words.endswith(" times less computing than none.")
        assert page.locator(".facts", has_text="Work spared in all").count() == 3
        assert "token-layer" not in page.locator("body").inner_text()
        picture(page, "compare-1440-light")
        page.locator(".retry").last.click()
        page.locator(".retry:disabled").first.wait_for()
        page.locator("#stop:disabled").wait_for()
        assert page.locator(".said").last.inner_text() == page.locator(".said").nth(1).inner_text()


def test_stop_ends_an_answer_and_the_page_goes_on(browser, server):
    with opened(browser, server.url) as page:
        page.locator("#examples button").first.wait_for()
        page.fill("#max_tokens", "256")
        page.fill("#steps", "256")
        with server.worker_held():
            page.fill("#question", QUESTION)
            page.press("#question", "Enter")
            page.locator("#stop:enabled").wait_for()
            page.keyboard.press("Escape")
            page.locator(".said", has_text="(stopped)").wait_for()
        page.fill("#max_tokens", "32")
        page.fill("#steps", "16")
        ask(page, QUESTION)
        assert page.locator(".said").last.inner_text() == "42 + 17 = 59"


def test_the_conversation_survives_a_reload(browser, server):
    with opened(browser, server.url) as page:
        page.locator("#examples button").first.wait_for()
        page.fill("#seed", "7")
        ask(page, QUESTION)
        page.select_option("#other", "none")
        ask(page, "Which things are red?", answers=2)
        page.locator(".comparison", has_text="computing").wait_for()
        parts = (".user", ".said", ".cell", ".replay output", ".cache-words", ".facts", ".comparison", "#mode-words")
        before = [page.locator(part).all_inner_texts() for part in parts]
        page.reload()
        page.locator(".facts").nth(2).wait_for()
        assert [page.locator(part).all_inner_texts() for part in parts] == before
        assert (page.input_value("#seed"), page.input_value("#other")) == ("7", "none")
        assert not page.locator("#intro").is_visible()
        page.select_option("#other", "")
        with page.expect_request("**/v1/chat/completions") as sent:
            ask(page, "How much is the blue pear?")
        told = sent.value.post_data_json["messages"]
        assert [one["content"] for one in told[1:]] == [
            QUESTION, "42 + 17 = 59", "Which things are red?", "apple, plum", "How much is the blue pear?"]  # fmt: skip
        page.locator(".retry").first.click()  # the talk goes on from there, without what came after it
        page.locator("#stop:disabled").wait_for()
        assert page.locator(".user").all_inner_texts() == [QUESTION]
        page.click("#clear")
        page.reload()
        page.locator("#examples button").first.wait_for()
        assert page.locator(".user").count() == 0
        assert page.locator("#intro").is_visible()


def test_a_reload_in_the_middle_of_an_answer_keeps_the_question(browser, server):
    with opened(browser, server.url) as page:
        page.locator("#examples button").first.wait_for()
        with server.worker_held():
            page.fill("#question", QUESTION)
            page.press("#question", "Enter")
            page.locator("#stop:enabled").wait_for()
            page.reload()
        page.locator(".said", has_text="(stopped)").wait_for()
        assert page.locator(".user").inner_text() == QUESTION
        page.locator(".retry").click()
        page.locator(".facts").wait_for(timeout=60_000)
        assert page.locator(".said").inner_text() == "42 + 17 = 59"


def test_what_is_kept_has_a_bound(browser, server):
    """Canvases of old turns go first, then old turns; what does not fit at all breaks nothing."""
    script = """async ([turns, cells, settings]) => {
        const { keep, recall } = await import("/playground/memory.js");
        const snapshot = { texts: Array(cells).fill("0123456789") };
        const turn = (at) => ({ question: `q${at}`, answers: [{ text: "a", snapshot }] });
        keep({ model: "m", settings: "x".repeat(settings), turns: [...Array(turns).keys()].map(turn) });
        const kept = recall("m").turns.map(({ question, answers }) => [question, Boolean(answers[0].snapshot)]);
        return [sessionStorage["shoal.chat"].length, kept, recall("another")];
    }"""
    with opened(browser, server.url) as page:
        page.locator("#examples button").first.wait_for()
        size, kept, other = page.evaluate(script, [30, 10_000, 0])
        assert size < 2_000_000
        assert [question for question, _ in kept] == [f"q{at}" for at in range(30)]
        assert [whole for _, whole in kept] == [False] * 19 + [True] * 11
        assert other is None
        _, again, _ = page.evaluate(script, [1, 1, 20_000_000])  # more than the browser takes
        assert again == kept


def test_the_tree_grows(browser, server):
    with opened(browser, f"{server.url}/#view=cache") as page, server.client() as client:
        page.locator("#totals .tile").first.wait_for()
        before = page.locator(".node").count()
        client.post("/generate", json={"text": "<|user|>" + " teal fig 11" * 30, "cache_salt": "somebody"})
        page.locator(".node").nth(before).wait_for(timeout=30_000)
        assert page.locator("#tree h3", has_text="tenant").count() == 1
        assert "somebody" not in page.content()
        assert "teal fig" not in page.locator("#tree").inner_text()  # another client's prompt


def test_tabs_by_keyboard(browser, server):
    with opened(browser, server.url) as page:
        page.locator("#examples button").first.wait_for()
        page.focus("#tab-chat")
        page.keyboard.press("ArrowRight")
        assert page.locator("#cache").is_visible()
        assert page.evaluate("document.activeElement.id") == "tab-cache"
        page.keyboard.press("ArrowLeft")
        assert page.locator("#chat").is_visible()
        assert not page.locator("#cache").is_visible()


def test_hostile_text_is_shown_as_text(browser, server):
    """From the user and from the model: tags stay text, characters that hide or turn text are written out."""
    cells = ["<b>", "\u202e", "\x07", "</div>"]
    snapshot = {"tokens": [1, 2, 3, 4], "texts": cells, "confidences": [0.5] * 4, "steps": [1] * 4, "blocks": [4],
                "block": 0, "step": 1}  # fmt: skip
    meta = {"nfe": 1, "cache_mode": "none", "depth": 0, "reused_token_layers": 0, "computed_token_layers": 64}
    choice = {"index": 0, "delta": {"content": HOSTILE}, "snapshot": snapshot, "meta_info": meta}
    usage = {"prompt_tokens": 4, "completion_tokens": 4}
    sent = "".join(f"data: {json.dumps(e)}\n\n" for e in ({"choices": [choice]}, {"choices": [], "usage": usage}))
    with opened(browser, server.url) as page:
        page.locator("#examples button").first.wait_for()
        reply = {"status": 200, "content_type": "text/event-stream", "body": f"{sent}data: [DONE]\n\n"}
        page.route("**/v1/chat/completions", lambda route: route.fulfill(**reply))
        ask(page, HOSTILE)
        shown = page.locator(".said").inner_text()
        assert shown == '<script>document.title = "owned"</script>\\u{202e}\\u{7}<img src=x onerror=alert(1)>'
        assert page.locator(".cell").all_inner_texts() == ["<b>", "\\u{202e}", "\\u{7}", "</div>"]
        assert "<script>" in page.locator(".user").inner_text()
        assert page.title() == "shoal playground"
        assert page.locator("#turns script, #turns img, #turns b").count() == 0


def test_a_refusal_is_shown_in_the_server_s_words(browser, server):
    with opened(browser, server.url) as page:
        page.locator("#examples button").first.wait_for()
        page.fill("#threshold", "0.5")
        page.fill("#question", QUESTION)
        page.press("#question", "Enter")
        page.locator(".said.bad").wait_for()
        assert "steps" in page.locator(".said.bad").inner_text()
        page.complaints.clear()  # the browser reports the 400


def test_a_key_is_asked_for_and_carried(browser, tmp_path):
    flags = (*FLAGS, "--in-process", "--api-key", "open sesame", "--admin-api-key", "more")
    with ServerProcess(tmp_path / "server.log", *flags) as locked, opened(browser, locked.url) as page:
        page.locator("#keys[open]").wait_for()
        no_serious_fault(page)
        page.fill("#key", "open sesame")
        page.keyboard.press("Enter")
        page.locator("#examples button").first.wait_for()
        ask(page, QUESTION)
        page.click("#tab-cache")
        page.locator("#keys[open]").wait_for()
        assert "admin key" in page.locator("#keys-why").inner_text()
        page.fill("#key", "more")
        page.keyboard.press("Enter")
        page.locator(".node").first.wait_for(timeout=30_000)
        assert "begins" in page.locator("#tree").inner_text()  # the admin key shows tokens
        kept = page.evaluate("[JSON.stringify(localStorage), sessionStorage['shoal.chat']]")
        assert kept[0] == "{}"
        assert "open sesame" not in kept[1]
        page.complaints.clear()  # the browser reports each 401


def test_memory_stays_flat_under_load(browser, server):
    """Many answers in new chats, with the tree and the charts polled: neither heap nor nodes keep growing.

    benchmarks/playground.py does it for minutes.
    """
    with opened(browser, server.url) as page:
        page.locator("#examples button").first.wait_for()

        def rounds(count: int) -> tuple[int, int]:
            for _ in range(count):
                ask(page, QUESTION)
                page.click("#tab-cache")
                page.click("#tab-load")
                page.click("#tab-chat")
                page.click("#clear")
            return memory(page)

        warm = rounds(8)
        heaps, nodes = zip(*(rounds(8) for _ in range(3)), strict=True)
        assert heaps[-1] < warm[0] + 300_000, (warm, heaps)
        assert nodes[-1] < warm[1] + 10, (warm, nodes)


def test_the_server_goes_and_comes_back(browser, server, port, tmp_path):
    """The last test of the module's server: it is stopped."""
    with opened(browser, server.url) as page:
        page.locator("#examples button").first.wait_for()
        assert server.stop() == 0
        page.locator("#lost:visible").wait_for(timeout=30_000)
        assert "does not answer" in page.locator("#lost").inner_text()
        with ServerProcess(tmp_path / "server.log", *FLAGS, "--port", str(port)):
            page.locator("#lost").wait_for(state="hidden", timeout=60_000)
            ask(page, QUESTION)
            assert page.locator(".said").inner_text() == "42 + 17 = 59"
        page.complaints.clear()  # the browser reports every call that failed
