"""The pages about the server: their examples are run, their tables are those of the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.launch_server import make_parser

from .flag_tables import tables
from .generated_tables import DOCS, split

_EXAMPLE = re.compile(
    r"<!-- run -->\n```(?P<language>\w+)\n(?P<code>.*?)```\n(?:<!-- prints -->\n```\n(?P<prints>.*?)```\n)?", re.DOTALL
)
_NAMES = (
    "chats.md", "fields.md", "flags.md", "http-api.md", "monitoring.md", "playground.md", "security.md", "serving.md",
    "structured-output.md",
)  # fmt: skip
PAGES = {name: (DOCS / name).read_text(encoding="utf-8") for name in _NAMES}
TEXT = "\n".join(PAGES.values())
EXAMPLES = {
    f"{name.removesuffix('.md')}-{i}-{match['language']}": match.groupdict()
    for name, text in PAGES.items()
    for i, match in enumerate(_EXAMPLE.finditer(text))
}


def test_the_examples_are_found():
    assert len(EXAMPLES) == TEXT.count("<!-- run -->") >= 10
    assert all(example["prints"] for example in EXAMPLES.values())


def test_pages_with_examples_are_read():
    marked = {page.name for page in DOCS.glob("*.md") if "<!-- run -->" in page.read_text(encoding="utf-8")}
    assert marked <= set(PAGES)


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_examples_print_what_the_page_says(server, example, tmp_path):
    for module in ("openai", "anthropic", "sglang"):
        if f"import {module}" in example["code"]:
            pytest.importorskip(module)
    code = example["code"].replace("http://127.0.0.1:30000", server.url)
    assert server.url in code
    name = {"bash": "example.sh", "python": "example.py"}[example["language"]]
    (tmp_path / name).write_text(code, encoding="utf-8")
    python = str(Path(sys.executable).parent)
    command = ["bash", "-euo", "pipefail", name] if name.endswith(".sh") else [sys.executable, name]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False, cwd=tmp_path,
        env={**os.environ, "PATH": f"{python}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == example["prints"]


def test_an_example_with_a_trace_follows_a_server_with_a_folder_for_traces():
    text = PAGES["monitoring.md"]
    before, example, _ = text.partition("<!-- run -->\n```bash\ncurl -s http://127.0.0.1:30000/start_profile")
    assert example
    assert "--profile-dir" in re.findall(r"^python -m shoal\.launch_server.*$", before, re.MULTILINE)[-1]


def test_the_tables_of_flags_are_the_code_s():
    between = split("flags.md")[1]
    assert between == tables(), "python -m tests.runtime.http.flag_tables writes them anew"


def test_every_flag_in_the_text_exists():
    known = set(re.findall(r"--[a-z][a-z0-9-]+", make_parser().format_help()))
    others = {"--backend", "--dataset-name", "--tokenizer", "--policy", "--worker-urls", "--help", "--profile"}
    others |= {"--minutes", "--out"}  # of the soak
    mentioned = set(re.findall(r"--[a-z][a-z0-9-]+", TEXT))
    assert mentioned - known - others == set()


def test_every_metric_in_the_text_exists(client):
    exposed = set(re.findall(r"^# TYPE (shoal:\w+)", client.get("/metrics").text, re.MULTILINE))
    exposed |= {f"{name}_total" for name in exposed}
    mentioned = set(re.findall(r"shoal:[a-z_]+[a-z]", TEXT))
    assert len(mentioned) > 25
    assert mentioned - exposed == set()


def test_every_route_of_the_server_is_in_the_text(client):
    for path in client.get("/openapi.json").json()["paths"]:
        assert path.split("{")[0] in TEXT, path
