"""All evidence about a GPU in one run of limited time: tests, benchmarks, a server, accuracy.

    python benchmarks/gpu_report.py --out out/gpu --minutes 30
    python benchmarks/gpu_report.py --out out/gpu --minutes 8 --only throughput --only phases
    python benchmarks/gpu_report.py --out out/gpu --minutes 30 --dry-run         # commands and limits, nothing runs

Parts run one after the other, each in a process with a time limit, the most important first; parts whose modules are
missing are skipped. Results are in the folder as soon as they are measured, and so is `gpu_report.json`, the
summary: whatever ends the run, nothing that was measured is lost. Exit status 0 only if every part was done.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.gpu_session.parts import PARTS, Part
from benchmarks.gpu_session.session import ROOT, Session, Stopped
from shoal.provenance import commit

FACTS = """
import json, platform, torch
from shoal.provenance import hardware
versions = f"python {platform.python_version()}, torch {torch.__version__}"
print(json.dumps({"cuda": torch.cuda.is_available(), "hardware": hardware(), "versions": versions}))
"""


def device_facts() -> dict[str, object]:
    """Whether there is a GPU, and which; a separate process finds out, since a query holds GPU memory."""
    done = subprocess.run([sys.executable, "-c", FACTS], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"cuda": False, "hardware": done.stderr[-500:]}
    facts: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return facts


def show(parts: list[Part], out: Path, minutes: float, revision: str) -> None:
    """Print commands and limits, for the case that every part takes all its time."""
    left = 60 * minutes
    for part in parts:
        limit = min(part.seconds, left)
        why = (
            f"not installed: {', '.join(part.missing())}" if part.missing() else "" if limit > 0 else "no time is left"
        )
        print(f"{part.name}: {why or f'{limit:.0f} s'}")
        if not why:
            print("  ", part.shown(out, revision, limit))
            left -= limit


def main() -> int:
    """Run the parts; the exit status."""
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results")
    parser.add_argument("--minutes", type=float, default=0.0, help="for everything; 0 does nothing")
    parser.add_argument("--only", choices=names, action="append", help="a part; all by default")
    parser.add_argument("--skip", choices=names, action="append", default=[], help="a part to leave out")
    parser.add_argument("--commit", default=commit(), help="what results name as the commit")
    parser.add_argument("--archive", type=Path, help="a .tar.gz of the folder, kept up to date")
    parser.add_argument("--dry-run", action="store_true", help="show commands and limits")
    args = parser.parse_args()
    parts = [part for part in PARTS if part.name in (args.only or names) and part.name not in args.skip]
    if args.dry_run:
        show(parts, args.out, args.minutes, args.commit)
        return 0
    if args.minutes <= 0:
        print("gpu_report does nothing without --minutes")
        return 0
    facts = device_facts()
    if not facts.pop("cuda"):
        print("gpu_report needs a CUDA GPU")
        return 0
    session = Session(args.out, args.minutes, args.commit, facts, args.archive)

    def stop(*_: object) -> None:
        raise Stopped

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        return 0 if session.run(parts) else 1
    except Stopped:
        return 1


if __name__ == "__main__":
    sys.exit(main())
