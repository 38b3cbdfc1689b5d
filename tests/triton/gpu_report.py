"""Run the checks of the Triton kernels on a GPU, in fp32 and bf16, and write a report to commit.

    python tests/triton/gpu_report.py --out benchmarks/results/kernel-checks-gpu.json

Needs torch, triton and pytest, nothing else that shoal uses. Exit status 0 only if every check ran and passed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import torch
import triton

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))
from shoal.provenance import commit, hardware  # noqa: E402


def run(name: str, processes: int, timeout: float) -> dict[str, object]:
    """Counts and failures of one file of checks."""
    environment = os.environ | {
        "SHOAL_TEST_DEVICE": "cuda", "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    environment.pop("TRITON_INTERPRET", None)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(HERE / name), f"--junit-xml={report}"]
        command += ["-n", str(processes)] if processes > 1 else []
        begin = time.monotonic()
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
            )
            output = done.stdout[-3000:] + done.stderr[-2000:]
        except subprocess.TimeoutExpired:
            return {"file": name, "error": f"not done after {timeout} s"}
        if not report.exists():
            return {"file": name, "error": output}
        suite = ElementTree.parse(report).getroot()
    cases = list(suite.iter("testcase"))
    failures = {}
    for case in cases:
        for problem in (*case.findall("failure"), *case.findall("error")):
            lines = (problem.get("message") or "").splitlines() + (problem.text or "").splitlines()[-12:]
            failures[str(case.get("name"))] = "\n".join(lines)[:1500]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {
        "file": name, "tests": len(cases), "passed": len(cases) - len(failures) - skipped, "skipped": skipped,
        "failures": failures, "seconds": round(time.monotonic() - begin, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("-n", type=int, default=1, help="processes (needs pytest-xdist)")
    parser.add_argument("--timeout", type=float, default=280, help="seconds for one file of checks")
    parser.add_argument("--commit", default=commit(), help="what the report names as the commit")
    parser.add_argument("files", nargs="*", help="check_*.py; all by default")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu_report.py needs a CUDA GPU")
    report: dict[str, object] = {
        "hardware": hardware(), "commit": options.commit,
        "versions": f"python {platform.python_version()}, torch {torch.__version__}, triton {triton.__version__}",
    }  # fmt: skip
    results: list[dict[str, object]] = []
    for name in options.files or sorted(path.name for path in HERE.glob("check_*.py")):
        results.append(run(name, options.n, options.timeout))
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report | {"files": results}, indent=1) + "\n", encoding="utf-8")
        print({key: value for key, value in results[-1].items() if key != "failures"}, flush=True)
        failures = results[-1].get("failures")
        for test, text in list(failures.items())[:3] if isinstance(failures, dict) else []:
            print(f"  {test}: {text[-600:]}", flush=True)
    sys.exit(0 if all(result.get("tests") and result["passed"] == result["tests"] for result in results) else 1)


if __name__ == "__main__":
    main()
