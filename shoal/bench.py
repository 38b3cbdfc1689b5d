"""`shoal bench`: the benchmarks of a checkout, by name."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .runtime.errors import ConfigError, shorten
from .runtime.nearest_name import did_you_mean

ROOT = Path(__file__).resolve().parents[1]
_MAIN = 'if __name__ == "__main__":'


def benchmarks(root: Path = ROOT) -> dict[str, str]:
    """Name and first line of the docstring of each benchmark. Raises ConfigError outside of a checkout."""
    found = {}
    for path in sorted((root / "benchmarks").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        if _MAIN in source and not path.stem.startswith("plot_"):
            words = ast.get_docstring(ast.parse(source)) or ""
            found[path.stem] = " ".join(words.partition("\n\n")[0].split())
    if not found:
        message = f"there are no benchmarks in {root}: they are part of the repository, not of the installed package"
        raise ConfigError(message, field="bench", value=str(root), limit="a checkout")
    return found


def run(name: str, arguments: Sequence[str], root: Path = ROOT) -> int:
    """Run one with its own options; its exit code. Raises ConfigError for an unknown name."""
    known = benchmarks(root)
    if name not in known:
        message = f"{shorten(name)} is no benchmark{did_you_mean(name, known)}; shoal bench lists them"
        raise ConfigError(message, field="bench", value=name, limit=", ".join(known))
    return subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *arguments], cwd=root, check=False).returncode
