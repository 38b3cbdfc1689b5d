"""Make a DLM of the causal base: `python -m shoal.text.train --base ... --data ... --out ...`, in pieces if need be.

Two phases. In the first every weight is trained, in the second, which starts from its end, a difference of low rank
from the base, small enough to ship. The data of a step depends on the seed and the step's number alone. A phase's
learning rate warms up and falls linearly to zero, over its steps or, with `--seconds`, over its time: what a rented GPU
has. Checkpoints are safetensors; after a `--time-limit`, or SIGTERM, the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from . import delta, evaluate
from .attention import choose_attention
from .corpus import held_out
from .network import MATRICES, Network, rms_norm
from .rows import KINDS, LENGTHS, TOKENS_PER_STEP, Batch, Steps
from .weights import FlatWeights, FullMaster, LowRankMaster

PHASES = ("full", "low-rank")
RATES = {"full": 7e-4, "low-rank": 3e-4}
COMPLETE = "complete"
"""An empty file beside the weights once every phase is over."""
_LAST_STEP = 10**6
"""Steps that a phase of given time may have."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line of the training script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="folder of the causal base")
    parser.add_argument("--data", type=Path, required=True, help="folder of corpus.py and chats.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and weights")
    parser.add_argument("--start", type=Path, help="weights to start from: a file that an earlier training wrote")
    parser.add_argument("--steps", type=int, nargs=2, default=(9000, 1500), metavar=("FULL", "LOW_RANK"))
    parser.add_argument("--seconds", type=float, nargs=2, metavar=("FULL", "LOW_RANK"), help="instead of --steps")
    parser.add_argument("--tokens-per-step", type=int, default=TOKENS_PER_STEP)
    parser.add_argument("--warm-up", type=int, default=100, help="steps of linear warm-up of each phase")
    parser.add_argument("--rank", type=int, default=delta.RANK)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=14, help="processes that make batches")
    parser.add_argument("--log-every", type=int, default=50, metavar="STEPS")
    parser.add_argument("--eval-every", type=int, default=1000, metavar="STEPS")
    parser.add_argument("--eval-documents", type=int, default=64)
    parser.add_argument("--save-every", type=float, default=150, metavar="SECONDS")
    parser.add_argument("--time-limit", type=float, default=None, help="stop and save after so many seconds")
    parser.add_argument("--no-compile", action="store_true")
    return parser.parse_args(arguments)


def learning_rate(peak: float, step: int, progress: float, warm_up: int) -> float:
    """Linear warm-up, times a linear fall to zero at progress 1."""
    return peak * min(1.0, (step + 1) / warm_up) * max(0.0, 1.0 - progress)


def cross_entropy(hidden: Tensor, norm: Tensor, embedding: Tensor, targets: Tensor, eps: float) -> Tensor:
    """NLL [n] of targets under hidden states [n, hidden]."""
    return F.cross_entropy(F.linear(rms_norm(hidden, norm, eps), embedding).float(), targets, reduction="none")


class Trainer:
    """A network, what the optimizer moves, and the progress made."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.cuda = options.device.startswith("cuda")
        base = Network.load_base(options.base)
        self.base = {kind: base.stacks[kind].detach().to(options.device) for kind in MATRICES}
        self.base_network = base
        network = Network.load_base(options.base)
        if options.start:
            delta.apply(options.start, network)
        self.network = network.to(options.device)
        self.flat = FlatWeights(self.network, torch.bfloat16 if self.cuda else torch.float32)
        self.cross_entropy: Callable[..., Tensor] = cross_entropy
        if self.cuda:
            self.network.grouped = choose_attention(self.network.shape, options.device)
        if not options.no_compile:
            self.network.run_layer = torch.compile(self.network.run_layer, dynamic=False, fullgraph=True)
            self.cross_entropy = torch.compile(cross_entropy, dynamic=False, fullgraph=True)
        self.phase, self.step, self.phase_step, self.tokens = PHASES[0], 0, 0, 0
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.master: FullMaster | LowRankMaster
        self.begin_phase(PHASES[0])

    def begin_phase(self, phase: str) -> None:
        """Set up a phase's parameters and optimizer; `low-rank` starts from the weights as they are."""
        self.phase, self.phase_step = phase, 0
        if phase == "full":
            self.master = FullMaster(self.flat)
        else:
            self.master = LowRankMaster(self.flat, self.base, self.options.rank)
            self.master.push()
        parameters = list(self.master.parameters.values())
        self.optimizer = torch.optim.AdamW(
            parameters, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0, fused=self.cuda or None
        )

    @property
    def checkpoint(self) -> Path:
        """The checkpoint file."""
        return Path(self.options.out, "checkpoint.safetensors")

    def save(self) -> None:
        """Write the checkpoint, replacing the last one at once, and the weights that the phase gives."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.master.parameters.items():
            tensors["weight." + name] = parameter.detach()
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"state.{key}.{name}"] = value
        progress = {"phase": self.phase, "step": self.step, "phase_step": self.phase_step, "tokens": self.tokens,
                    "seconds": self.seconds, "seed": self.options.seed}  # fmt: skip
        temporary = self.checkpoint.with_suffix(".tmp")
        save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, temporary, {"progress": json.dumps(progress)})
        temporary.replace(self.checkpoint)
        self.write_weights()

    def write_weights(self) -> None:
        """Write `full.safetensors` or `low-rank.safetensors`."""
        file = self.options.out / f"{self.phase}.safetensors"
        if isinstance(self.master, LowRankMaster):
            delta.write_low_rank(file, self.network, {kind: self.master.factors(kind) for kind in MATRICES})
        else:
            delta.write_delta(file, self.network, self.base_network)

    def restore(self) -> bool:
        """Continue from the checkpoint, if there is one."""
        if not self.checkpoint.exists():
            return False
        with safe_open(self.checkpoint, "pt") as file, torch.no_grad():
            progress = json.loads(file.metadata()["progress"])
            if progress["seed"] != self.options.seed:
                raise SystemExit(f"{self.checkpoint} was trained with --seed {progress['seed']}")
            if progress["phase"] != self.phase:
                self.begin_phase(progress["phase"])
            keys = set(file.keys())
            for name, parameter in self.master.parameters.items():
                parameter.copy_(file.get_tensor("weight." + name))
                for part in ("step", "exp_avg", "exp_avg_sq"):
                    if (key := f"state.{part}.{name}") in keys:
                        value = file.get_tensor(key)
                        self.optimizer.state[parameter][part] = value.to(parameter.device)
        self.master.push()
        self.step, self.phase_step, self.tokens = progress["step"], progress["phase_step"], progress["tokens"]
        self.seconds = progress["seconds"]
        return True

    def progress(self, elapsed: float) -> float:
        """How much of the phase is done, 0 to 1, `elapsed` seconds into it."""
        index = PHASES.index(self.phase)
        if self.options.seconds:
            return elapsed / max(float(self.options.seconds[index]), 1e-9)
        return self.phase_step / max(int(self.options.steps[index]), 1)

    def train_step(self, batch: Batch, progress: float) -> Tensor:
        """One optimizer step; returns the weighted loss of each kind of row and the weights' sums, [2, kinds]."""
        tokens, where, targets, weight, kind = (t.to(self.options.device, non_blocking=True) for t in batch)
        self.flat.gradient.zero_()
        hidden = self.network(tokens).flatten(0, 1)[where]
        network = self.network
        nll = self.cross_entropy(hidden, network.final_norm, network.embedding, targets, network.shape.eps)
        loss = (nll * weight).sum() / weight.sum().clamp(min=1)
        loss.backward()
        self.master.pull()
        torch.nn.utils.clip_grad_norm_(self.master.parameters.values(), 1.0)
        rate = learning_rate(RATES[self.phase], self.phase_step, progress, self.options.warm_up)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.master.push()
        self.step += 1
        self.phase_step += 1
        self.tokens += tokens.numel()
        sums = torch.zeros(2, len(KINDS), device=nll.device)
        sums[0].index_add_(0, kind, (nll * weight).detach())
        sums[1].index_add_(0, kind, weight)
        return sums


class Probes:
    """Quick measurements during the training, on held-out documents."""

    def __init__(self, options: argparse.Namespace, tokenizer: Tokenizer):
        documents, _ = held_out(options.data / "held.npz", 1741, options.eval_documents)
        self.tokens = torch.from_numpy(documents[:, :1024]).to(options.device)
        self.rows = evaluate.lookup_rows(documents, tokenizer, 512, 0.5)

    def __call__(self, network: Network) -> dict[str, float]:
        """NLL at two mask rates, and look-up accuracy."""
        with torch.compiler.set_stance("force_eager"):
            out = {
                f"nll_{rate}": evaluate.nll_at_rate(network, self.tokens, rate).mean().item() for rate in (0.15, 0.5)
            }
            return {**out, "look_up": evaluate.lookup(network, self.rows)["accuracy"]}


def _ignore_sigterm(worker: int) -> None:
    """A signal to the whole process group must leave the workers alive until the last step is saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def main(arguments: list[str] | None = None) -> None:
    """Train both phases to their end, to the time limit or to SIGTERM, and save; exits with 143 after the last."""
    options = parse_arguments(arguments)
    stopped = threading.Event()
    previous = signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    try:
        _train(options, stopped)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _train(options: argparse.Namespace, stopped: threading.Event) -> None:
    """All that is left of both phases; SystemExit once `stopped` is set and the step in progress is saved."""
    begin = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")
    trainer = Trainer(options)
    if trainer.restore():
        print(f"resumed at step {trainer.step}", flush=True)
    tokenizer_file = options.base / "tokenizer.json"
    probes = Probes(options, Tokenizer.from_file(str(tokenizer_file)))
    loader: DataLoader[Any] = DataLoader(
        Steps(options.data, tokenizer_file, options.seed, _LAST_STEP, options.tokens_per_step),
        sampler=range(trainer.step, _LAST_STEP), batch_size=None, num_workers=options.workers,
        prefetch_factor=8 if options.workers else None, pin_memory=trainer.cuda,
        worker_init_fn=_ignore_sigterm,
    )  # fmt: skip
    with (
        (options.out / "log.jsonl").open("a") as log,
        tqdm(initial=trainer.step, disable=not sys.stderr.isatty()) as bar,
    ):

        def note(**record: Any) -> None:
            seconds = round(sum(trainer.seconds.values()), 1)
            record = {"phase": trainer.phase, "step": trainer.step, "seconds": seconds, **record}
            log.write(json.dumps(record) + "\n")
            log.flush()
            bar.write(json.dumps(record))
            sys.stdout.flush()

        sums: list[Tensor] = []
        mark, marked, saved = time.monotonic(), trainer.tokens, time.monotonic()
        last = time.monotonic()
        for number, batch in enumerate(loader):
            now = time.monotonic()
            if number > len(LENGTHS):  # the first step of each length compiles; its time does not count
                trainer.seconds[trainer.phase] += now - last
            last = now
            progress = trainer.progress(trainer.seconds[trainer.phase])
            if progress >= 1:
                trainer.save()
                note(probes=probes(trainer.network), tokens=trainer.tokens)
                following = PHASES.index(trainer.phase) + 1
                if following == len(PHASES) or not (options.seconds or options.steps)[following]:
                    (options.out / COMPLETE).touch()
                    break
                trainer.begin_phase(PHASES[following])
                note(probes=probes(trainer.network), event="compressed")
                progress, last, sums = 0.0, time.monotonic(), []
            sums.append(trainer.train_step(batch, progress))
            bar.update()
            if trainer.step % options.log_every == 0:
                total, weight = torch.stack(sums).sum(0).cpu()
                losses = {
                    k: round(t / w, 4) for k, t, w in zip(KINDS, total.tolist(), weight.tolist(), strict=True) if w
                }
                speed = (trainer.tokens - marked) / (time.monotonic() - mark)
                mark, marked = time.monotonic(), trainer.tokens
                sums.clear()
                note(loss=losses, tokens=trainer.tokens, tokens_a_second=round(speed))
                if total.sum() != total.sum():
                    raise SystemExit("the loss is not a number")
            if trainer.step % options.eval_every == 0:
                note(probes=probes(trainer.network))
            if time.monotonic() - saved > options.save_every:
                trainer.save()
                saved = time.monotonic()
            if stopped.is_set():
                trainer.save()
                raise SystemExit(128 + signal.SIGTERM)
            if options.time_limit and time.monotonic() - begin > options.time_limit:
                trainer.save()
                break


if __name__ == "__main__":
    main()
