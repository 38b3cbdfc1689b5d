"""Rank 1 of models that tests run on two ranks: rank 0 is the test's own process.

`python -m tests.runtime.worker.second_rank RENDEZVOUS` reads lines from standard input: `build OPTIONS` (JSON) makes a
worker, `gpu OPTIONS` one on the path of a GPU, anything else is a message to it (base64). It answers every build and
every forward with a line: `built`, or the digest of what was committed.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import torch

from shoal.runtime.config import EngineConfig
from shoal.runtime.model.ranks import Ranks
from shoal.runtime.pipeline.messages import Add, Codec, Drop, Lengthen, Run, ToWorker
from shoal.runtime.pipeline.rank_check import digest_of
from shoal.runtime.request.forward import AddRequest, Forward, Grow, Release, StepResult
from shoal.runtime.worker.build import build_worker
from shoal.runtime.worker.executor import Executor
from shoal.runtime.worker.gpu.build import build_cuda_executor
from shoal.runtime.worker.worker import Worker

CODEC: Codec[Any] = Codec(ToWorker)
ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")


class TwoRanks:
    """This process as rank 0, and a child as rank 1. `engine_parts` makes workers that both of them share."""

    def __init__(self, folder: Path):
        rendezvous = folder / "rendezvous"
        command = [sys.executable, "-m", __name__, str(rendezvous)]
        self.child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ranks = Ranks.join(rendezvous, 0, 2, CPU, 60)

    def tell(self, line: str) -> None:
        """Send a line to rank 1."""
        assert self.child.stdin is not None
        self.child.stdin.write(line + "\n")
        self.child.stdin.flush()

    def answer(self) -> str:
        """Rank 1's next line."""
        assert self.child.stdout is not None
        return self.child.stdout.readline().strip()

    def worker(self, config: EngineConfig, gpu: bool = False) -> tuple[Worker, Any]:
        """What `build_worker` returns, with a worker that passes everything on to rank 1."""
        options = {name: getattr(config, name) for name in config.__dataclass_fields__}
        self.tell(f"{'gpu' if gpu else 'build'} {json.dumps(options)}")
        made, facts = build_worker(config, None, build_cuda_executor if gpu else None, ranks=self.ranks)
        assert self.answer() == "built"
        return _Leader(made.executor, self), facts

    def close(self) -> None:
        """End rank 1, and leave the group."""
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.close()
        self.child.wait(60)
        self.child.stdout.close()
        torch.distributed.destroy_process_group()


class _Leader(Worker):
    def __init__(self, executor: Executor, ranks: TwoRanks):
        super().__init__(executor)
        self._others = ranks

    def _pass_on(self, message: Any) -> None:
        self._others.tell(base64.b64encode(CODEC.encode(message)).decode())

    def add(self, message: AddRequest) -> None:
        self._pass_on(Add(message))
        super().add(message)

    def grow(self, message: Grow) -> None:
        self._pass_on(Lengthen(message))
        super().grow(message)

    def release(self, message: Release) -> None:
        self._pass_on(Drop(message))
        super().release(message)

    def forward(self, message: Forward) -> list[StepResult]:
        self._pass_on(Run(message))
        results = super().forward(message)
        assert self._others.answer() == str(digest_of(results))
        return results


def serve(lines: IO[str], ranks: Ranks) -> None:
    """Until the lines end."""
    worker: Any = None
    for line in lines:
        kind, _, options = line.strip().partition(" ")
        if kind in ("build", "gpu"):
            config = EngineConfig(**json.loads(options))
            worker, _ = build_worker(config, None, build_cuda_executor if kind == "gpu" else None, ranks=ranks)
            print("built", flush=True)
            continue
        match CODEC.decode(base64.b64decode(kind)):
            case Add(request=request):
                worker.add(request)
            case Lengthen(grow=grow):
                worker.grow(grow)
            case Drop(release=release):
                worker.release(release)
            case Run(forward=forward):
                print(digest_of(worker.forward(forward)), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(sys.stdin, Ranks.join(sys.argv[1], 1, 2, CPU, 60))
