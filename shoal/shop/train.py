"""Train `shop` or `shop-dream`: `python -m shoal.shop.train --out out/shop` on a GPU, in pieces if need be.

The data of a step depends on the seed and the step's number alone, so a run that was stopped and resumed sees the same
batches as one that was not. Matrices inside the blocks are trained by Muon, everything else by AdamW; the learning rate
is constant after a warm-up and falls linearly to zero from `--decay-start` to `--steps`, or follows the phases of the
recipe; the model is published at the end of each. Checkpoints are safetensors. After a `--time-limit` the same command
goes on from there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from .evaluate import accuracy, probes, reuse_accuracy
from .muon import Muon
from .publish import publish
from .recipe import RECIPES, Phase, Recipe, scheduled
from .rows import TOKENS_PER_STEP, Batch, Steps


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line of the training script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and the published model")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="shop")
    parser.add_argument("--steps", type=int, help="training steps in all, in one phase; default: the recipe's")
    parser.add_argument("--decay-start", type=int, help="with --steps: step from which the learning rate falls")
    parser.add_argument("--tokens-per-step", type=int, default=TOKENS_PER_STEP)
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon", help="for the blocks' matrices")
    parser.add_argument("--muon-lr", type=float, default=0.008)
    parser.add_argument("--adam-lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--warm-up", type=int, default=100, help="steps of linear warm-up")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=12, help="processes that draw training rows")
    parser.add_argument("--eval-every", type=int, default=1000)
    parser.add_argument("--eval-questions", type=int, default=240)
    parser.add_argument("--final-questions", type=int, default=1000)
    parser.add_argument("--time-limit", type=float, default=None, help="stop and save after so many seconds")
    parser.add_argument(
        "--resume-from-published", type=Path, help="start from a published model's weights at --at-step"
    )
    parser.add_argument("--at-step", type=int, default=0)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--deterministic", action="store_true", help="bitwise reproducible kernels, slower")
    options = parser.parse_args(arguments)
    if (options.steps is None) != (options.decay_start is None):
        parser.error("--steps and --decay-start go together")
    return options


def phases_of(options: argparse.Namespace) -> tuple[Phase, ...]:
    """The phases asked for: one of `--steps`, or the recipe's."""
    if options.steps is not None:
        return (Phase("model", options.steps, options.decay_start),)
    return RECIPES[options.recipe].phases


class Trainer:
    """Network, optimizers and the step reached; saved to and restored from one safetensors file."""

    def __init__(self, options: argparse.Namespace, config: dict[str, Any] | None = None):
        torch.manual_seed(options.seed)
        self.options = options
        self.recipe: Recipe = RECIPES[options.recipe]
        self.phases = phases_of(options)
        self.network = self.recipe.network(config or self.recipe.config).to(options.device)
        inside = {id(p) for p in self.network.blocks.parameters() if p.dim() == 2}
        muon = inside if options.optimizer == "muon" else set()
        matrices = [p for p in self.network.parameters() if id(p) in muon]
        others = [p for p in self.network.parameters() if id(p) not in muon]
        graphs = options.device.startswith("cuda")
        rate = torch.tensor(0.0, device=options.device) if graphs else 0.0
        self.muon = Muon(matrices or [torch.zeros(1, 1)], lr=rate, weight_decay=options.weight_decay)
        self.adam = torch.optim.AdamW(
            [
                {"params": [p for p in others if p.dim() == 2], "weight_decay": options.weight_decay},
                {"params": [p for p in others if p.dim() == 1], "weight_decay": 0.0},
            ],
            lr=rate, betas=(0.9, 0.95), foreach=True, capturable=graphs,
        )  # fmt: skip
        for optimizer in (self.muon, self.adam) if graphs else ():
            for group in optimizer.param_groups:
                group["lr"] = torch.tensor(0.0, device=options.device)
        self.step = 0
        self.seconds = 0.0
        self.graphs: dict[tuple[torch.Size, int], tuple[torch.cuda.CUDAGraph, list[torch.Tensor], torch.Tensor]] = {}

    @property
    def checkpoint(self) -> Path:
        """The checkpoint file."""
        return Path(self.options.out, "checkpoint.safetensors")

    def save(self) -> None:
        """Write weights, optimizer state and progress, replacing the file at once."""
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in self.network.named_parameters():
            tensors["weight." + name] = parameter.detach()
            for optimizer in (self.muon, self.adam):
                for key, value in optimizer.state.get(parameter, {}).items():
                    tensors[f"state.{key}.{name}"] = value
        metadata = {"step": str(self.step), "seconds": str(self.seconds), "seed": str(self.options.seed),
                    "recipe": self.options.recipe}  # fmt: skip
        temporary = self.checkpoint.with_suffix(".tmp")
        save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, temporary, metadata)
        temporary.replace(self.checkpoint)

    def restore(self) -> bool:
        """Continue from the checkpoint, if there is one."""
        if not self.checkpoint.exists():
            return False
        with safe_open(self.checkpoint, "pt") as file, torch.no_grad():
            metadata = file.metadata()
            if int(metadata["seed"]) != self.options.seed:
                raise SystemExit(f"{self.checkpoint} was trained with --seed {metadata['seed']}")
            if (recipe := metadata.get("recipe", "shop")) != self.options.recipe:
                raise SystemExit(f"{self.checkpoint} was trained with --recipe {recipe}")
            keys = set(file.keys())
            for name, parameter in self.network.named_parameters():
                parameter.copy_(file.get_tensor("weight." + name))
                for optimizer, parts in ((self.muon, ("momentum",)), (self.adam, ("step", "exp_avg", "exp_avg_sq"))):
                    for part in parts:
                        if (key := f"state.{part}.{name}") in keys:
                            value = file.get_tensor(key)
                            optimizer.state[parameter][part] = value.to(parameter.device)
            self.step, self.seconds = int(metadata["step"]), float(metadata["seconds"])
        return True

    def restore_published(self, folder: Path, step: int) -> None:
        """Continue from published bf16 weights, with fresh optimizer state."""
        with torch.no_grad():
            parameters = dict(self.network.named_parameters())
            for shard in sorted(folder.glob("*.safetensors")):
                with safe_open(shard, "pt") as file:
                    for name in file.keys():  # noqa: SIM118
                        parameters[name].copy_(file.get_tensor(name))
        self.step = step

    def train_step(self, batch: Batch) -> torch.Tensor:
        """One optimizer step; returns the loss (on the device)."""
        o = self.options
        shape, graphs = (batch[0].shape, len(batch)), o.device.startswith("cuda")
        if graphs and shape not in self.graphs:
            self.graphs[shape] = self._capture([t.to(o.device) for t in batch])
        factor = scheduled(self.step, self.phases, o.warm_up)
        for optimizer, rate in ((self.muon, o.muon_lr), (self.adam, o.adam_lr)):
            for group in optimizer.param_groups:
                if isinstance(group["lr"], torch.Tensor):  # a tensor of its own, read by the captured graphs
                    group["lr"].fill_(rate * factor)
                else:
                    group["lr"] = rate * factor
        self.step += 1
        if not graphs:
            return self._update([t.to(o.device) for t in batch])
        graph, inputs, loss = self.graphs[shape]
        for static, new in zip(inputs, batch, strict=True):
            static.copy_(new, non_blocking=True)
        graph.replay()
        return loss.clone()

    def _capture(self, inputs: list[torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, list[torch.Tensor], torch.Tensor]:
        """Record a whole step for one shape as a CUDA graph; the warm-up before it leaves no trace."""
        if not self.adam.state:  # creates the optimizers' state; the rates are zero until now
            for optimizer in (self.muon, self.adam):
                for group in optimizer.param_groups:
                    group["lr"].zero_()
            self._update(inputs)
            for optimizer in (self.muon, self.adam):
                for state in optimizer.state.values():
                    for value in state.values():
                        value.zero_()
        optimizers = (self.muon, self.adam)
        live = [p.data for p in self.network.parameters()]
        live += [value for o in optimizers for state in o.state.values() for value in state.values()]
        kept = [tensor.clone() for tensor in live]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._update(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = self._update(inputs)
        for tensor, before in zip(live, kept, strict=True):
            tensor.copy_(before)
        return graph, inputs, loss

    def _update(self, batch: list[torch.Tensor]) -> torch.Tensor:
        clean, masked, weight, *rest = batch
        reuse = rest[0] if rest else None
        self.network.zero_grad(set_to_none=True)
        with torch.autocast(torch.device(self.options.device).type, torch.bfloat16, cache_enabled=False):
            logits = self.network(masked, None, reuse)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), clean.flatten(), reduction="none")
        loss = (loss * weight.flatten()).sum() / weight.sum().clamp(min=1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0, foreach=True)
        self.muon.step()
        self.adam.step()
        return loss.detach()


def probe(trainer: Trainer) -> dict[str, float]:
    """Early signs of learning, in the precision of training."""
    with torch.compiler.set_stance("force_eager"), torch.autocast(trainer.options.device, torch.bfloat16):
        return probes(trainer.network)


def evaluate(trainer: Trainer, questions: int) -> dict[str, float]:
    """Accuracy by kind on held-out lists, in the precision of training."""
    trainer.network.eval()
    with torch.compiler.set_stance("force_eager"), torch.autocast(trainer.options.device, torch.bfloat16):
        result = accuracy(trainer.network, questions, seed=0)
    trainer.network.train()
    return result


def reused(trainer: Trainer, depth: int, questions: int) -> dict[str, float]:
    """Accuracy when the list's layers below `depth` come from another question's first forward."""
    trainer.network.eval()
    with torch.compiler.set_stance("force_eager"), torch.autocast(trainer.options.device, torch.bfloat16):
        result = reuse_accuracy(trainer.network, questions, seed=1, depth=depth)
    trainer.network.train()
    return result


def batches(options: argparse.Namespace, first: int) -> Iterator[Batch]:
    """Batches of the steps from `first` to the last."""
    last = phases_of(options)[-1].stop
    loader: DataLoader[Any] = DataLoader(
        Steps(options.seed, last, options.tokens_per_step, RECIPES[options.recipe].mix),
        sampler=range(first, last), batch_size=None, num_workers=options.workers,
        prefetch_factor=16 if options.workers else None, pin_memory=options.device != "cpu",
    )  # fmt: skip
    return iter(loader)


def main(arguments: list[str] | None = None, config: dict[str, Any] | None = None) -> None:
    """Train until the last step or the time limit, then save; publish the model at the end of each phase, and then."""
    options = parse_arguments(arguments)
    begin = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    torch.use_deterministic_algorithms(options.deterministic)
    trainer = Trainer(options, config)
    if trainer.restore():
        print(f"resumed at step {trainer.step}")
    elif options.resume_from_published:
        trainer.restore_published(options.resume_from_published, options.at_step)
    if not options.no_compile:
        torch._dynamo.config.recompile_limit = 64
        for block in trainer.network.blocks:
            block.compile(dynamic=False)
    ends = {phase.stop: phase.name for phase in trainer.phases}
    total = trainer.phases[-1].stop
    losses: list[torch.Tensor] = []
    mean = float("nan")
    earlier = trainer.seconds
    with (options.out / "log.jsonl").open("a") as log, tqdm(total=total, initial=trainer.step) as bar:

        def note(**record: Any) -> None:
            trainer.seconds = earlier + time.monotonic() - begin
            record = {"step": trainer.step, "seconds": round(trainer.seconds, 1), **record}
            log.write(json.dumps(record) + "\n")
            log.flush()
            bar.write(json.dumps(record))

        def finish(name: str) -> None:
            result: dict[str, float] = {}
            with contextlib.suppress(KeyboardInterrupt):
                result = evaluate(trainer, options.final_questions)
                note(final=result)
                note(reuse={depth: reused(trainer, depth, 192) for depth in trainer.recipe.reuse_depths})
            publish(trainer.network, options.out / name, training=summary(trainer, mean, result))

        if trainer.step in ends and not (options.out / ends[trainer.step] / "training.json").exists():
            finish(ends[trainer.step])  # stopped between saving and publishing
        for batch in batches(options, trainer.step):
            losses.append(trainer.train_step(batch))
            bar.update()
            last = trainer.step in ends
            if len(losses) == 250 or last:
                mean = torch.stack(losses).mean().item()
                losses.clear()
                note(loss=round(mean, 4), tokens=trainer.step * options.tokens_per_step, probes=probe(trainer))
                bar.set_postfix(loss=f"{mean:.3f}")
                if mean != mean:
                    raise SystemExit("the loss is not a number")
            if last:
                trainer.save()
                finish(ends[trainer.step])
            elif trainer.step % options.eval_every == 0:
                note(accuracy=evaluate(trainer, options.eval_questions))
            if options.time_limit and time.monotonic() - begin > options.time_limit:
                break
        trainer.seconds = earlier + time.monotonic() - begin
        trainer.save()
        if trainer.step not in ends:
            finish(trainer.phases[-1].name)


def summary(trainer: Trainer, loss: float, accuracy: dict[str, float]) -> dict[str, Any]:
    """Content of `training.json`."""
    options = trainer.options
    return {
        "recipe": options.recipe, "seed": options.seed, "steps": trainer.step,
        "tokens": trainer.step * options.tokens_per_step, "seconds": round(trainer.seconds),
        "hardware": torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU",
        "optimizer": "Muon + AdamW" if options.optimizer == "muon" else "AdamW",
        "loss": loss if loss == loss else None, "accuracy": accuracy,
    }  # fmt: skip


if __name__ == "__main__":
    main()
