"""Small host arrays to device memory in one copy, into new memory or, for CUDA graphs, always into the same."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.int32] | npt.NDArray[np.float32]
_ALIGNED = 32  # elements: 128 bytes, so that every array starts where kernels like it


class DeviceArrays:
    """int32 and fp32 vectors of fixed sizes side by side in one device tensor, addressed by name.

    Args:
        like: arrays whose names, lengths and dtypes fix the layout; their contents are what `views` holds at first.
        pinned: hold the host's side in pinned memory, so that copies need not wait.
    """

    def __init__(self, like: Mapping[str, Array], device: torch.device, pinned: bool = True):
        self._places: dict[str, tuple[int, int]] = {}
        end = 0
        for name, array in like.items():
            self._places[name] = (end, len(array))
            end += -(-len(array) // _ALIGNED) * _ALIGNED
        self._host = torch.zeros(max(1, end), dtype=torch.int32, pin_memory=pinned and device.type == "cuda")
        self._numpy = self._host.numpy()
        self._device = torch.zeros(max(1, end), dtype=torch.int32, device=device)
        self.views: dict[str, Tensor] = {}
        for name, array in like.items():
            at, length = self._places[name]
            view = self._device[at : at + length]
            self.views[name] = view.view(torch.float32) if array.dtype == np.float32 else view
        self.load(like)

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Replace the contents, in stream order; arrays shorter than their place keep what stands behind them.

        The copy may still be in flight at the return: call it again only after the device has caught up.
        """
        for name, array in arrays.items():
            at, length = self._places[name]
            if len(array) > length:
                raise ValueError(f"{name} has {len(array)} elements; its place has {length}")
            self._numpy[at : at + len(array)] = array.view(np.int32)
        self._device.copy_(self._host, non_blocking=True)


def to_device(arrays: Mapping[str, Array], device: torch.device) -> dict[str, Tensor]:
    """New device tensors with the contents of `arrays`, in one copy from ordinary memory (pinning takes longer)."""
    return DeviceArrays(arrays, device, pinned=False).views
