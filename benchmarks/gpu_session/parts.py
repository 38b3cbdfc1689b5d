"""What a session on a GPU consists of: commands, how long each may take, what each needs; the most telling first."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

SERVES = ("zmq", "msgspec", "fastapi", "uvicorn", "httptools", "orjson", "prometheus_client", "tokenizers")
"""Modules without which no server starts."""
TESTS = "tests/triton/gpu_report.py"


@dataclass(frozen=True, slots=True)
class Part:
    """One command.

    Attributes:
        name: on the command line and in the summary.
        words: the command behind `python`, relative to the root; {out}, {commit}, {workers} and {soft} (the seconds
            that it is told to take) are filled in.
        seconds: after which it is killed; less where less is left.
        needs: modules; where one is missing the part is skipped.
        reserve: seconds between what it is told and when it is killed: for what it is in the middle of.
    """

    name: str
    words: tuple[str, ...]
    seconds: float
    needs: tuple[str, ...] = ()
    reserve: float = 20.0

    def command(self, out: Path, commit: str, limit: float) -> list[str]:
        """The words, filled in for `limit` seconds."""
        values = {"out": out, "commit": commit, "workers": workers(), "soft": max(1, round(limit - self.reserve))}
        return [word.format(**values) for word in self.words]

    def shown(self, out: Path, commit: str, limit: float) -> str:
        """The command as one types it."""
        return " ".join(["python", *self.command(out, commit, limit)])

    def missing(self) -> list[str]:
        """Modules that it needs and that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def workers() -> int:
    """Test processes: as many as have three cores each, five at most; one without pytest-xdist."""
    if importlib.util.find_spec("xdist") is None:
        return 1
    return max(1, min(5, (os.cpu_count() or 1) // 3))


def tests(report: str, *files: str) -> tuple[str, ...]:
    """A run of test files with a report."""
    return (TESTS, "--out", f"{{out}}/{report}", "-n", "{workers}", "--timeout", "{soft}", "--time-limit", "{soft}",
            "--commit", "{commit}", *files)  # fmt: skip


def measurement(script: str, result: str, *more: str) -> tuple[str, ...]:
    """A benchmark that keeps a time limit."""
    return (
        f"benchmarks/{script}",
        "--out",
        f"{{out}}/{result}",
        "--time-limit",
        "{soft}",
        "--commit",
        "{commit}",
        *more,
    )


PARTS = (
    Part(
        "kernel-checks",
        tests("kernel-checks-gpu.json", "check_hopper.py", "check_attention.py", "check_block_step.py", "check_rows.py",
              "check_shared_attention.py", "check_confidence.py", "check_shaping.py", "check_experts.py",
              "check_fp8.py"),
        180, ("pytest",),
    ),
    Part(
        "throughput",
        measurement("throughput.py", "throughput.csv", "--trace", "{out}/throughput_forwards.json"), 360, reserve=60,
    ),
    Part("phases", measurement("gpu_phases.py", "gpu_phases.csv"), 150),
    Part(
        "engine-tests",
        tests("engine-tests-gpu.json", "tests/gpu/test_logits.py", "tests/gpu/test_engine.py"),
        300, ("pytest", "tokenizers"),
    ),
    Part(
        "accuracy",
        ("benchmarks/accuracy.py", "modes", "--device", "cuda", "--lists", "6", "--out", "{out}/accuracy-gpu.csv",
         "--commit", "{commit}"),
        150, ("tokenizers", "tqdm"),
    ),
    Part(
        "server",
        ("benchmarks/gpu_session/server.py", "--out", "{out}/server-gpu.json", "--ready-limit", "90", "--commit",
         "{commit}"),
        130, SERVES,
    ),
    Part("kernels", measurement("kernels.py", "kernels.csv"), 240),
    Part("step-variants", measurement("step_variants.py", "step_variants.csv"), 120),
    Part(
        "throughput-dream",
        measurement("throughput.py", "throughput-dream.csv", "--shapes", "dream-7b", "--quick"), 150, reserve=40,
    ),
)  # fmt: skip
