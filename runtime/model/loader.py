"""Build a Decoder from a model folder, or with random weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ..cpu_tuning import keep_freed_memory
from ..errors import ModelLoadError
from .config import ModelConfig
from .decoder import Decoder, LayerWeights
from .hub import resolve_model_folder
from .linear import Linear, SummedLinear, needed_tile
from .lora import LoraAdapter
from .mlp import DenseMlp, ExpertMlp
from .registry import family_named, load_config
from .safetensors_folder import SafetensorsFolder
from .slices import Slice, config_of_rank, slice_of
from .weight_names import is_ignorable, tensor_shapes

if TYPE_CHECKING:
    from .ranks import Ranks

LoadFormat = Literal["auto", "dummy"]
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_DUMMY_STD = 0.02

ReadTensor = Callable[[str, tuple[int, ...], Slice | None], Tensor]
"""(name, expected shape, slice) -> that slice of the tensor (None: all), on any device, in any float dtype."""


def load_model(
    source: str | Path | ModelConfig,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    load_format: LoadFormat = "auto",
    seed: int = 0,
    batch_invariant: bool | None = None,
    mask_token_id: int | None = None,
    lora: str | Path | None = None,
    finish_layer: Callable[[LayerWeights], None] | None = None,
    ranks: Ranks | None = None,
) -> Decoder:
    """Load a model onto `device` as `dtype`.

    Args:
        source: a model folder, `shop` or a Hub id (see `resolve_model_folder`); with load_format `dummy` also
            a ModelConfig.
        dtype: float32, bfloat16 or float16.
        load_format: `auto` reads the weights, `dummy` draws them from a normal distribution (std 0.02, seeded
            by `seed`; the same on every run on the same kind of device) and needs no weight files.
        batch_invariant: rows independent of how many rows are computed together; by default on for float32
            on the CPU, the only combination where it is supported.
        mask_token_id: replaces what the folder says.
        finish_layer: called with each layer as soon as its weights are there; may replace them.
        lora: folder of an adapter to merge into the weights (`lora.py`); not with load_format `dummy`.
        ranks: load this rank's slices alone (`slices.py`).

    Memory: the weights on the device, a tied head being the embedding itself, and one tensor at a time on the host. On
    the CPU it makes the process keep freed memory (`keep_freed_memory`).

    Raises: ModelLoadError naming the field, file or tensor at fault, ConfigError for a model that can't be split over
    these ranks.
    """
    device = _check_target(dtype, device)
    if load_format not in ("auto", "dummy"):
        raise ModelLoadError(
            f"load_format = {load_format!r}: expected 'auto' or 'dummy'",
            field="load_format",
            value=load_format,
            limit="'auto' or 'dummy'",
        )
    if isinstance(source, ModelConfig):
        if load_format != "dummy":
            raise ModelLoadError(
                "a ModelConfig has no weights: pass a model folder, or load_format='dummy'",
                field="load_format",
                value=load_format,
                limit="'dummy'",
            )
        config = source
    else:
        folder = resolve_model_folder(source)
        config = load_config(folder, mask_token_id)
    if load_format == "dummy":
        if lora is not None:
            raise ModelLoadError(
                "lora needs weights to be merged into: load_format is 'dummy'",
                field="lora",
                value=str(lora),
                limit=None,
            )
        read = _dummy_reader(dtype, device, seed)
    else:
        weights = SafetensorsFolder(folder)
        check_tensors(config, weights)
        read = weights.read if lora is None else _merging_reader(config, weights, lora)
    if device.type == "cpu":
        keep_freed_memory()
    if batch_invariant is None:
        batch_invariant = device.type == "cpu" and dtype == torch.float32
    try:
        return _Builder(config, read, dtype, device, batch_invariant, ranks).build(finish_layer)
    except torch.OutOfMemoryError as error:
        need = config.num_parameters * dtype.itemsize / 2**30
        raise ModelLoadError(
            f"device = {str(device)!r} has too little free memory for {need:.1f} GiB of weights",
            field="device",
            value=str(device),
            limit=f"{need:.1f} GiB free",
        ) from error


def check_tensors(config: ModelConfig, weights: SafetensorsFolder) -> None:
    """Check a folder's headers against `config`. Raises: ModelLoadError naming the first wrong tensor."""
    names = family_named(config.architecture).weight_names
    expected = tensor_shapes(config, names)
    missing = [name for name in expected if name not in weights.entries]
    if missing:
        raise ModelLoadError(
            f"the weights lack {_some(missing)}, which config.json asks for",
            field=missing[0],
            value=None,
            limit=f"shape {list(expected[missing[0]])}",
        )
    unknown = sorted(set(weights.entries) - set(expected))
    unexpected = [name for name in unknown if not is_ignorable(config, names, name)]
    if unexpected:
        raise ModelLoadError(
            f"the weights hold {_some(unexpected)}, which the architecture {config.architecture!r} as config.json "
            "describes it does not have",
            field=unexpected[0],
            value=list(weights.entries[unexpected[0]].shape),
            limit="no such tensor",
        )
    for name, shape in expected.items():
        entry = weights.entries[name]
        if entry.shape != shape:
            raise ModelLoadError(
                f"tensor {name!r} in {entry.file.name} has shape {list(entry.shape)}: config.json asks for "
                f"{list(shape)}",
                field=name,
                value=list(entry.shape),
                limit=list(shape),
            )
        weights.check_dtype(entry)


class _Builder:
    """Copies tensors, one at a time, into the fused matrices of a Decoder."""

    def __init__(
        self, config: ModelConfig, read: ReadTensor, dtype: torch.dtype, device: torch.device, batch_invariant: bool,
        ranks: Ranks | None,
    ):  # fmt: skip
        self._config = config
        self._read = read
        self._dtype = dtype
        self._device = device
        self._batch_invariant = batch_invariant
        self._ranks = ranks
        self._config_of_rank = config_of_rank(config, 1 if ranks is None else ranks.size)
        self._names = family_named(config.architecture).weight_names
        self._shapes = tensor_shapes(config, self._names)

    @torch.inference_mode()
    def build(self, finish_layer: Callable[[LayerWeights], None] | None = None) -> Decoder:
        config = self._config
        if self._batch_invariant:  # a probe takes as much memory as its matrix: the largest comes before the weights
            needed_tile(config.hidden_size, config.vocab_size, torch.get_num_threads())
        embedding = self._embedding()
        layers = []
        for index in range(config.num_layers):
            layers.append(self._layer(index))
            if finish_layer is not None:
                finish_layer(layers[-1])
        final_norm = self._plain(self._names.final_norm)
        head = self._head(embedding)
        return Decoder(self._config_of_rank, embedding, layers, final_norm, head, self._ranks)

    def _layer(self, index: int) -> LayerWeights:
        of_layer = self._names.of_layer
        qkv = ("q", "k", "v")
        bias_names = [of_layer(index, part, "bias") for part in qkv] if self._config.qkv_bias else []
        q_norm, k_norm = (
            [self._plain(of_layer(index, part)) for part in ("q_norm", "k_norm")]
            if self._config.qk_norm
            else (None, None)
        )
        return LayerWeights(
            attention_norm=self._plain(of_layer(index, "attention_norm")),
            qkv=self._linear([of_layer(index, part) for part in qkv], bias_names, parts=qkv),
            attention_out=self._summed(self._linear([of_layer(index, "attention_out")], parts=["attention_out"])),
            mlp_norm=self._plain(of_layer(index, "mlp_norm")),
            mlp=self._experts(index) if self._config.num_experts else self._dense(index),
            q_norm=q_norm,
            k_norm=k_norm,
        )

    def _dense(self, index: int) -> DenseMlp:
        mlp = self._mlp(partial(self._names.of_layer, index))
        return DenseMlp(mlp.gate_up, self._summed(mlp.down))

    def _mlp(self, name: Callable[[str], str]) -> DenseMlp:
        gate_up = self._linear([name("gate"), name("up")], parts=["gate", "up"])
        return DenseMlp(gate_up, self._linear([name("down")], parts=["down"]))

    def _summed(self, linear: Linear) -> Linear:
        return linear if self._ranks is None else SummedLinear(linear, self._ranks)

    def _experts(self, index: int) -> ExpertMlp:
        config, names = self._config, self._names
        router_name = names.of_layer(index, "router")
        router = self._empty(config.hidden_size, config.num_experts, dtype=torch.float32)
        router.weight_t.t().copy_(self._read(router_name, self._shapes[router_name], None))
        named = [partial(names.of_expert, index, expert) for expert in range(config.num_experts)]
        top_k, ranks = config.experts_per_token, self._ranks
        if self._device.type == "cpu":
            return ExpertMlp(router, [self._mlp(name) for name in named], top_k, ranks=ranks)
        width, hidden = self._config_of_rank.intermediate_size, config.hidden_size
        gate_up, down = (
            torch.empty((config.num_experts, *shape), dtype=self._dtype, device=self._device)
            for shape in ((2 * width, hidden), (hidden, width))
        )
        experts = [
            DenseMlp(
                self._linear([name("gate"), name("up")], into=gate_up[expert], parts=["gate", "up"]),
                self._linear([name("down")], into=down[expert], parts=["down"]),
            )
            for expert, name in enumerate(named)
        ]
        return ExpertMlp(router, experts, top_k, (gate_up, down), ranks)

    def _embedding(self) -> Tensor:
        """[embedding_size, hidden]; in the layout of a product when the head is the same matrix."""
        if self._shares_embedding:
            return self._linear([self._names.embedding]).weight_t.t()
        return self._plain(self._names.embedding)

    def _head(self, embedding: Tensor) -> Linear:
        config = self._config
        if self._shares_embedding:
            return Linear(embedding.t(), batch_invariant=self._batch_invariant)
        if not config.tie_word_embeddings:
            return self._linear([self._names.head], rows=config.vocab_size)
        head = self._empty(config.hidden_size, config.vocab_size)
        head.weight_t.t().copy_(embedding[: config.vocab_size])
        return head

    @property
    def _shares_embedding(self) -> bool:
        """Whether the head is the embedding. Rows behind the vocabulary would give the product other strides."""
        return self._config.tie_word_embeddings and self._config.embedding_size == self._config.vocab_size

    def _linear(
        self, names: Sequence[str], bias_names: Sequence[str] = (), rows: int | None = None,
        into: Tensor | None = None, parts: Sequence[str] | None = None,
    ) -> Linear:  # fmt: skip
        """Stack the named [out, in] weights (the first `rows` rows of each) and biases along their outputs, in new
        memory or `into` [out, in].

        `parts` are their fields of `WeightNames`, which say what of them this rank holds; None: all.
        """
        slices = [None if parts is None else self._slice(*pair) for pair in zip(parts or names, names, strict=True)]
        shapes = [self._shape(name, part) for name, part in zip(names, slices, strict=True)]
        sizes = [shape[0] if rows is None else rows for shape in shapes]
        linear = self._empty(shapes[0][1], sum(sizes), bias=bool(bias_names)) if into is None else Linear(into.t())
        pieces = linear.weight_t.t().split(sizes)
        for name, part, piece in zip(names, slices, pieces, strict=True):
            piece.copy_(self._read(name, self._shapes[name], part)[: piece.shape[0]])
        if linear.bias is not None:
            for name, part, piece in zip(bias_names, slices, linear.bias.split(sizes), strict=True):
                piece.copy_(self._read(name, self._shapes[name], part))
        return linear

    def _slice(self, part: str, name: str) -> Slice | None:
        ranks = self._ranks
        return None if ranks is None else slice_of(part, self._shapes[name], ranks.rank, ranks.size)

    def _shape(self, name: str, part: Slice | None) -> tuple[int, ...]:
        return self._shapes[name] if part is None else part.of(self._shapes[name])

    def _empty(self, inputs: int, outputs: int, bias: bool = False, dtype: torch.dtype | None = None) -> Linear:
        return Linear.empty(
            inputs,
            outputs,
            bias,
            dtype=dtype or self._dtype,
            device=self._device,
            batch_invariant=self._batch_invariant,
        )

    def _plain(self, name: str) -> Tensor:
        out = torch.empty(self._shapes[name], dtype=self._dtype, device=self._device)
        return out.copy_(self._read(name, self._shapes[name], None))


def _merging_reader(config: ModelConfig, weights: SafetensorsFolder, lora: str | Path) -> ReadTensor:
    adapter = LoraAdapter(lora, tensor_shapes(config, family_named(config.architecture).weight_names))

    def read(name: str, shape: tuple[int, ...], part: Slice | None) -> Tensor:
        weight = weights.read(name, shape, part)
        return adapter.merge(name, weight, part) if name in adapter else weight

    return read


def _dummy_reader(dtype: torch.dtype, device: torch.device, seed: int) -> ReadTensor:
    if device.type == "meta":  # shapes alone
        return lambda name, shape, part: torch.empty(shape, dtype=dtype, device=device)
    generator = torch.Generator(device).manual_seed(seed)

    def read(name: str, shape: tuple[int, ...], part: Slice | None) -> Tensor:
        if len(shape) == 1 and name.endswith(".weight"):
            return torch.ones(shape, dtype=dtype, device=device)
        # Drawn whole, so that every rank has slices of the same model.
        drawn = torch.empty(shape, dtype=dtype, device=device).normal_(0.0, _DUMMY_STD, generator=generator)
        return drawn if part is None else drawn.narrow(part.dim, part.start, part.stop - part.start)

    return read


def _check_target(dtype: torch.dtype, device: torch.device | str) -> torch.device:
    if dtype not in _DTYPES:
        names = ", ".join(str(option).removeprefix("torch.") for option in _DTYPES)
        raise ModelLoadError(f"dtype = {dtype!r}: expected one of {names}", field="dtype", value=dtype, limit=names)
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    # torch raises RuntimeError, AssertionError or NotImplementedError for a device it can't use.
    except Exception as error:
        raise ModelLoadError(
            f"device = {str(device)!r} can't be used: {error}",
            field="device",
            value=str(device),
            limit="'cpu' or 'cuda'",
        ) from error
    return target


def _some(names: list[str], shown: int = 3) -> str:
    """`2 tensors: 'a', 'b'`, with an ellipsis after the first few."""
    listed = ", ".join(repr(name) for name in names[:shown]) + (", …" if len(names) > shown else "")
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}: {listed}"
