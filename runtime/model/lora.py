"""LoRA adapters (Hu et al. 2021, arXiv 2106.09685), merged into the weights as they are read.

W' = W + s B A with A [r, in], B [out, r] and s = lora_alpha / r (lora_alpha / sqrt(r) with `use_rslora`). A folder as
PEFT writes it: adapter_config.json, and adapter_model.safetensors with names `base_model.model.MODULE.lora_A.weight`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..errors import ModelLoadError, shorten
from .config_fields import Fields
from .safetensors_folder import SafetensorsFolder
from .slices import Slice

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_NAME = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
# What would change the result and is not computed here: these values only.
_EXPECTED: Mapping[str, tuple[object, ...]] = {
    "bias": ("none", None), "use_dora": (False, None), "fan_in_fan_out": (False, None), "modules_to_save": (None, []),
    "use_qalora": (False, None), "lora_bias": (False, None), "layer_replication": (None,),
    # Other ways to start a training change the weights that the adapter belongs to.
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"), "trainable_token_indices": (None,),
    "alora_invocation_tokens": (None,), "megatron_config": (None,), "target_parameters": (None, []),
}  # fmt: skip


class LoraAdapter:
    """An adapter for a model whose tensors have `shapes` (name -> [out, in]).

    Raises ModelLoadError for a folder that is no adapter, one that needs more than these two matrices (DoRA, biases,
    modules saved whole, other PEFT methods), or that does not fit the model.
    """

    def __init__(self, folder: str | Path, shapes: Mapping[str, tuple[int, ...]]):
        self.folder = Path(folder)
        self._config = self._read_config()
        self.weights = SafetensorsFolder(self.folder, WEIGHTS_FILE)
        self._pairs: dict[str, dict[str, str]] = {}
        for name in self.weights.entries:
            match = _NAME.fullmatch(name)
            target = f"{match[1]}.weight" if match else ""
            if match is None or len(shapes.get(target, ())) != 2:
                self._refuse(name, "lora_A and lora_B of matrices that the model has")
            self._pairs.setdefault(target, {})[match[2]] = name
        if not self._pairs:
            self._refuse(WEIGHTS_FILE, "at least one pair of lora_A and lora_B")
        for target, pair in self._pairs.items():
            self._check(target, pair, shapes[target])

    def __contains__(self, name: str) -> bool:
        """Whether it changes that tensor."""
        return name in self._pairs

    def merge(self, name: str, weight: Tensor, part: Slice | None = None) -> Tensor:
        """W + s B A of one of its tensors, [out, in], or of a slice `weight` of it: a new tensor in fp32 on the CPU."""
        pair = self._pairs[name]
        a, b = (self.weights.read(pair[side], self.weights.entries[pair[side]].shape).float() for side in "AB")
        if part is not None and part.dim == 0:
            b = b[part.start : part.stop]
        elif part is not None:
            a = a[:, part.start : part.stop]
        return torch.addmm(weight.float(), b, a, alpha=self._scale(name, a.shape[0]))

    def _scale(self, name: str, rank: int) -> float:
        alpha = self._pattern("alpha_pattern", name, self._config.number("lora_alpha", default=8.0))
        return alpha / (math.sqrt(rank) if self._config.boolean("use_rslora", default=False) else rank)

    def _pattern(self, key: str, name: str, default: float) -> float:
        """A value for some modules: keys are ends of module names, or regular expressions of them, as in PEFT."""
        values = self._config.get(key, {})
        module = name.removesuffix(".weight")
        for pattern, value in values.items() if isinstance(values, dict) else ():
            try:
                fits = re.fullmatch(rf"(.*\.)?({pattern})", module)
            except re.error:
                self._refuse(f"{key} {shorten(pattern)}", "a regular expression")
            if fits:
                return Fields({key: value}).number(key)
        return default

    def _check(self, target: str, pair: dict[str, str], shape: tuple[int, ...]) -> None:
        for side in "AB":
            if side not in pair:
                self._refuse(target, f"lora_{side} beside lora_{'B' if side == 'A' else 'A'}")
            self.weights.check_dtype(self.weights.entries[pair[side]])
        a, b = (self.weights.entries[pair[side]].shape for side in "AB")
        if len(a) != 2 or len(b) != 2 or (b[0], a[1]) != shape or a[0] != b[1] or a[0] < 1:
            self._refuse(
                pair["A"], f"lora_A [r, {shape[1]}] and lora_B [{shape[0]}, r]; they are {list(a)} and {list(b)}"
            )
        rank = self._pattern("rank_pattern", target, self._config.integer("r", default=8))
        if a[0] != rank:
            self._refuse(pair["A"], f"rank {rank:g}, as {CONFIG_FILE} says; it is {a[0]}")

    def _read_config(self) -> Fields:
        path = self.folder / CONFIG_FILE
        try:
            values: Any = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            message = f"lora is {str(self.folder)!r}: no adapter can be read there ({CONFIG_FILE}: {error})"
            limit = f"a folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
            raise ModelLoadError(message, field="lora", value=str(self.folder), limit=limit) from error
        if not isinstance(values, dict):
            self._refuse(CONFIG_FILE, "a JSON object")
        if values.get("peft_type") != "LORA":
            self._refuse(f"peft_type = {shorten(values.get('peft_type'))}", "'LORA'")
        for key, accepted in _EXPECTED.items():
            if (value := values.get(key)) not in accepted:
                self._refuse(f"{key} = {shorten(value)}", " or ".join(map(repr, accepted)))
        return Fields(values)

    def _refuse(self, what: str, expected: str) -> NoReturn:
        raise ModelLoadError(
            f"the LoRA adapter in {str(self.folder)!r} has {what}: expected {expected}",
            field="lora",
            value=what,
            limit=expected,
        )
