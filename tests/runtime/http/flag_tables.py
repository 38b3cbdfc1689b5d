"""The tables of docs/flags.md, from the configuration classes.

python -m tests.runtime.http.flag_tables   # writes them anew
"""

from __future__ import annotations

from shoal.replicas import ReplicaConfig
from shoal.runtime.config import EngineConfig
from shoal.runtime.flags import markdown_table
from shoal.runtime.http.config import ServerConfig
from shoal.runtime.pipeline.config import PipelineConfig

from .generated_tables import write

TITLES = (
    ("The HTTP server", ServerConfig), ("Its processes", PipelineConfig), ("The engine", EngineConfig),
    ("Several servers behind a router", ReplicaConfig),
)  # fmt: skip


def tables() -> str:
    """What stands between the marks."""
    return "\n".join(f"## {title}\n\n{markdown_table(config)}" for title, config in TITLES)


if __name__ == "__main__":
    write("flags.md", tables())
