"""The tables of flags in docs/serving.md, from the configuration classes.

python -m tests.runtime.http.flag_tables   # writes them anew
"""

from __future__ import annotations

from pathlib import Path

from shoal.replicas import ReplicaConfig
from shoal.runtime.config import EngineConfig
from shoal.runtime.flags import markdown_table
from shoal.runtime.http.config import ServerConfig
from shoal.runtime.pipeline.config import PipelineConfig

PAGE = Path(__file__).parents[3] / "docs" / "serving.md"
BEGIN, END = "<!-- flags: begin -->\n", "<!-- flags: end -->\n"
TITLES = (
    ("The HTTP server", ServerConfig), ("Its processes", PipelineConfig), ("The engine", EngineConfig),
    ("Several servers behind a router", ReplicaConfig),
)  # fmt: skip


def tables() -> str:
    """What stands between the marks."""
    return "\n".join(f"### {title}\n\n{markdown_table(config)}" for title, config in TITLES)


def split(page: str) -> tuple[str, str, str]:
    """The page before, between and after the marks."""
    before, _, rest = page.partition(BEGIN)
    between, _, after = rest.partition(END)
    return before, between, after


def main() -> None:
    """Write the tables anew."""
    before, _, after = split(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(f"{before}{BEGIN}{tables()}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
