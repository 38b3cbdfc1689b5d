"""One rank of the measurements of tensor parallelism; `tensor_parallel.py` starts it, and says what it is.

Every rank runs the same scheduler over the same requests, so that no messages are needed; rank 0 writes the results.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.model_shapes import write_shape
from benchmarks.table import Table
from benchmarks.throughput import kind
from shoal.provenance import hardware
from shoal.runtime.config import EngineConfig
from shoal.runtime.engine.build import Parts, build_parts
from shoal.runtime.model.ranks import Ranks
from shoal.runtime.request.forward import ForwardItem
from shoal.runtime.request.input import GenerateInput
from shoal.runtime.request.intake import Intake
from shoal.runtime.request.output import RequestOutput
from shoal.runtime.request.request import Request
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.runtime.text.stream import TextStream
from shoal.runtime.worker.build import build_worker
from shoal.runtime.worker.canvas import Canvas
from shoal.runtime.worker.device import device_of_rank
from shoal.runtime.worker.executor import Ran

BLOCK, NFE, SCORED = 32, 8, 16
SUM_ROWS = (32, 256, 1024, 9856)
SUMS = 64
"""Sums of one measurement: as many as a forward of 32 layers has."""


class Rank:
    """Models on this rank, and what is measured on them.

    Args:
        args: of `main`.
        ranks: the group; None for one rank.
    """

    def __init__(self, args: argparse.Namespace, ranks: Ranks | None):
        self._args, self._ranks = args, ranks
        self._ids = itertools.count()
        self.leads = ranks is None or ranks.rank == 0
        constant = {"tp_size": args.size, "commit": args.commit, "hardware": hardware(), "torch": torch.__version__}
        self._table = Table(args.out / f"tensor_parallel_tp{args.size}.csv" if self.leads else None, constant)

    def parts(self, shape: str, dtype: str, folder: Path) -> Parts:
        """An engine's parts on random weights, the same for every number of ranks."""
        args = self._args
        config = EngineConfig(
            model_path=str(write_shape(shape, folder)), load_format="dummy", device=args.device, dtype=dtype,
            tp_size=args.size, depth=0, max_running_requests=32, block_length=BLOCK,
            kv_cache_tokens=None if args.device == "cuda" else 32768,
        )  # fmt: skip
        begin = time.perf_counter()
        parts = build_parts(config, worker=build_worker(config, ranks=self._ranks))
        if self.leads:
            print(f"{shape} {dtype}: ready after {time.perf_counter() - begin:.1f} s", flush=True)
        self._config = config
        return parts

    def run(self, parts: Parts, requests: Sequence[GenerateInput]) -> list[RequestOutput]:
        """Terminal outputs, in order; checks that all ranks have the same tokens."""
        intake = Intake(self._config, parts.facts, None)
        made = [Request(spec, TextStream(None, ())) for spec in intake.specs(requests)]
        for request in made:
            parts.scheduler.add(request)
        ended = {}
        while parts.scheduler.has_work:
            ended.update({output.rid: output for output in parts.scheduler.step() if output.finished})
        outputs = [ended[request.rid] for request in made]
        if errors := [output.error for output in outputs if output.error is not None]:
            raise SystemExit(f"a request failed: {errors[0].message}")
        if self._ranks is not None:
            tokens = torch.tensor([token for output in outputs for token in output.token_ids])
            tokens = tokens.to(parts.decoder.device)
            everybody = self._ranks.gather(tokens, 0).view(self._args.size, -1)
            assert torch.equal(everybody, tokens.expand_as(everybody)), "ranks committed different tokens"
        return outputs

    def requests(self, count: int, prompt: int, canvas: int, vocabulary: int) -> list[GenerateInput]:
        """Random prompts that share nothing, with ids of their own."""
        rng = np.random.default_rng(count)
        params = SamplingParams(
            max_new_tokens=canvas, block_length=BLOCK, steps=-(-canvas // BLOCK) * NFE, ignore_eos=True
        )
        return [
            GenerateInput(
                prompt=rng.integers(4, vocabulary // 2, prompt).tolist(), rid=str(next(self._ids)), sampling=params,
                cache_mode="dual",
            )
            for _ in range(count)
        ]  # fmt: skip

    def measure(self, parts: Parts, batch: int, prompt: int, canvas: int) -> None:
        """Whole requests; of their forwards, the block steps and the refreshes of a whole batch."""
        timed: list[tuple[str, int, float]] = []
        executor = parts.worker.executor
        original = executor.run

        def run(items: Sequence[ForwardItem], canvases: Sequence[Canvas], at_most: int) -> tuple[int, list[Ran]]:
            begin = time.perf_counter()
            steps, ran = original(items, canvases, at_most)
            timed.append((kind(items[0]), steps, time.perf_counter() - begin))
            return steps, ran

        vocabulary = parts.facts.model.vocab_size
        self.run(parts, self.requests(batch, prompt, 2 * BLOCK, vocabulary))  # what has to be compiled is compiled
        executor.run = run  # type: ignore[method-assign]
        begin = time.perf_counter()
        outputs = self.run(parts, self.requests(batch, prompt, canvas, vocabulary))
        seconds = time.perf_counter() - begin
        executor.run = original  # type: ignore[method-assign]
        steps = [spent / count for name, count, spent in timed if name == "step"]
        refreshes = sum(spent for name, _, spent in timed if name != "step")
        self._table.add({
            "part": "requests", "dtype": str(parts.decoder.dtype).removeprefix("torch."), "batch": batch,
            "rows": prompt + canvas, "tokens_per_s": f"{sum(len(o.token_ids) for o in outputs) / seconds:.1f}",
            "block_step_ms": f"{1000 * float(np.median(steps)):.3f}",
            "refresh_ms": f"{1000 * refreshes / (canvas // BLOCK):.2f}", "seconds": f"{seconds:.3f}", "sum_us": "",
        })  # fmt: skip

    def sums(self, width: int, dtype: torch.dtype) -> None:
        """Sums over the ranks alone: in new memory (NCCL or gloo), and in symmetric memory where there is some."""
        assert self._ranks is not None
        device = torch.device(device_of_rank(self._args.device, self._ranks.rank, self._args.size))
        self._ranks.reserve(SUM_ROWS[-1], width, dtype)
        for rows in SUM_ROWS if device.type == "cuda" else SUM_ROWS[:2]:
            plain = torch.zeros(rows, width, dtype=dtype, device=device)
            for name, x in (("plain", plain), ("symmetric", self._ranks.room(rows))):
                if x is not None:
                    self._table.add({
                        "part": f"sum {name}", "dtype": str(dtype).removeprefix("torch."), "batch": "", "rows": rows,
                        "tokens_per_s": "", "block_step_ms": "", "refresh_ms": "", "seconds": "",
                        "sum_us": f"{self._seconds_of_a_sum(x) * 1e6:.2f}",
                    })  # fmt: skip

    def _seconds_of_a_sum(self, x: torch.Tensor) -> float:
        ranks = self._ranks
        assert ranks is not None

        def many() -> None:
            for _ in range(SUMS):
                ranks.add_up(x)

        many()
        if x.device.type != "cuda":
            begin = time.perf_counter()
            many()
            return (time.perf_counter() - begin) / SUMS
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            many()
        graph.replay()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(10):
            graph.replay()
        torch.cuda.synchronize()
        return (time.perf_counter() - begin) / SUMS / 10

    def answers(self, parts: Parts, name: str, prompt: int, canvas: int) -> None:
        """Tokens of a few requests, and log-probabilities of random tokens in a canvas of masks, to a file."""
        vocabulary = parts.facts.model.vocab_size
        tokens = [list(o.token_ids) for o in self.run(parts, self.requests(3, prompt, canvas, vocabulary))]
        logits = self._logits(parts, prompt, canvas)
        if self.leads:
            data = {"tokens": tokens, "log_probabilities": logits}
            (self._args.out / f"{name}_tp{self._args.size}.json").write_text(json.dumps(data))

    @torch.inference_mode()
    def _logits(self, parts: Parts, prompt: int, canvas: int) -> list[float]:
        """Log-probabilities (fp32 softmax) of some tokens at masks behind a prompt, by the layers' plain code."""
        from shoal.runtime.worker.drift import uncached_pass

        decoder = parts.decoder
        rng = np.random.default_rng(5)
        ids = rng.integers(4, decoder.config.vocab_size // 2, prompt).tolist() + [decoder.config.mask_token_id] * canvas
        rows = torch.arange(prompt, prompt + SCORED, device=decoder.device)
        tokens = torch.tensor(ids, device=decoder.device)
        hidden = uncached_pass(decoder, tokens, lambda *_: None, rows)
        chosen = torch.from_numpy(rng.integers(4, decoder.config.vocab_size // 2, SCORED)).to(decoder.device)
        found = decoder.logits(hidden).float().log_softmax(-1).gather(1, chosen[:, None])[:, 0]
        return [float(value) for value in found]


def main() -> None:
    """Measure in the order of value; every row is written when it is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rendezvous", required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--shape", required=True)
    parser.add_argument("--prompt", type=int, required=True)
    parser.add_argument("--canvas", type=int, required=True)
    parser.add_argument("--batches", type=int, nargs="+", required=True)
    parser.add_argument("--commit", default="")
    args = parser.parse_args()
    ranks = None
    if args.size > 1:
        device = torch.device(device_of_rank(args.device, args.rank, args.size))
        ranks = Ranks.join(args.rendezvous, args.rank, args.size, device, 600)
    rank = Rank(args, ranks)
    dtype = "bfloat16" if args.device == "cuda" else "float32"
    with tempfile.TemporaryDirectory() as folder:
        if ranks is not None:
            rank.sums(4096, getattr(torch, dtype))
        parts = rank.parts(args.shape, dtype, Path(folder))
        for batch in args.batches:
            rank.measure(parts, batch, args.prompt, args.canvas)
        rank.answers(parts, args.shape, args.prompt, 2 * BLOCK)
        del parts
        rank.answers(rank.parts("tiny", "float32", Path(folder)), "exact", 100, 2 * BLOCK)


if __name__ == "__main__":
    main()
