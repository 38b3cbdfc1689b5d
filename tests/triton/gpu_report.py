"""Run tests on a GPU and write a report to commit: by default the checks of the Triton kernels, in fp32 and bf16.

    python tests/triton/gpu_report.py --out benchmarks/results/kernel-checks-gpu.json
    python tests/triton/gpu_report.py --out benchmarks/results/engine-tests-gpu.json tests/gpu/*.py

The checks of the kernels need torch, triton and pytest, nothing else that shoal uses. The report is rewritten after
every file; what a file that is cut off (--timeout, --time-limit) got to is in it. Beside it stands a file of progress
(.jsonl) with a line for every test as soon as it has ended. Exit status 0 only if every test ran and passed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import torch
import triton

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]
from shoal.provenance import commit, hardware  # noqa: E402

progress_file = import_module("progress_file")


def run(file: Path, processes: int, timeout: float, progress: Path) -> dict[str, object]:
    """Counts and failures of one file of tests; `progress` gets a line a test."""
    paths = [str(ROOT), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "SHOAL_TEST_DEVICE": "cuda", "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONDONTWRITEBYTECODE": "1", progress_file.VARIABLE: str(progress),
    }  # fmt: skip
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "progress_file", str(file)]
    command += ["-n", str(processes)] if processes > 1 else []
    before, begin, error = progress_file.outcomes(progress), time.monotonic(), None
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=timeout, check=False)
        if done.returncode not in (0, 1):
            output = (done.stdout + done.stderr).decode(errors="replace")
            error = f"pytest ended with status {done.returncode}: {output[-3000:]}"
    except subprocess.TimeoutExpired:
        error = f"not done after {timeout:.0f} s"
    cases = {test: line for test, line in progress_file.outcomes(progress).items() if before.get(test) != line}
    counts = {name: sum(line["outcome"] == name for line in cases.values()) for name in ("passed", "skipped")}
    failures = {test.split("::")[-1]: line["text"] for test, line in cases.items() if line["outcome"] == "failed"}
    result = {
        "file": file.name, "tests": len(cases), **counts, "failures": failures,
        "seconds": round(time.monotonic() - begin, 1),
    }  # fmt: skip
    return result if error is None else result | {"error": error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("-n", type=int, default=1, help="processes (needs pytest-xdist)")
    parser.add_argument("--timeout", type=float, default=280, help="seconds for one file")
    parser.add_argument("--time-limit", type=float, default=3600, help="seconds for all files together")
    parser.add_argument("--commit", default=commit(), help="what the report names as the commit")
    parser.add_argument("files", nargs="*", help="test files; a name alone is one beside this; by default check_*.py")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu_report.py needs a CUDA GPU")
    begin, out = time.monotonic(), options.out.resolve()
    report: dict[str, object] = {
        "hardware": hardware(), "commit": options.commit,
        "versions": f"python {platform.python_version()}, torch {torch.__version__}, triton {triton.__version__}",
    }  # fmt: skip
    results: list[dict[str, object]] = []
    out.parent.mkdir(parents=True, exist_ok=True)
    progress = out.with_suffix(".jsonl")
    progress.unlink(missing_ok=True)
    for name in options.files or sorted(path.name for path in HERE.glob("check_*.py")):
        left = options.time_limit - (time.monotonic() - begin)
        file = HERE / name if (HERE / name).exists() else (ROOT / name).resolve()
        if left > 1:
            results.append(run(file, options.n, min(options.timeout, left), progress))
        else:
            results.append({"file": file.name, "tests": 0, "passed": 0, "error": "no time was left"})
        whole = out.with_suffix(".new")
        whole.write_text(json.dumps(report | {"files": results}, indent=1) + "\n", encoding="utf-8")
        os.replace(whole, out)
        print({key: value for key, value in results[-1].items() if key != "failures"}, flush=True)
        failures = results[-1].get("failures")
        for test, text in list(failures.items())[:3] if isinstance(failures, dict) else []:
            print(f"  {test}: {text[-600:]}", flush=True)
    good = [result.get("tests") and result["passed"] == result["tests"] and "error" not in result for result in results]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
