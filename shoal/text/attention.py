"""Which of PyTorch's attention kernels a training uses: the fastest on this GPU at this shape that is right."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .network import Shape

_TOKENS, _LENGTH = 65_536, 1024
_TOLERANCE = 2e-2


def attend(q: Tensor, k: Tensor, v: Tensor, grouped: bool) -> Tensor:
    """Attention without a mask; `grouped`: kernels read the few key heads, else repeated ones."""
    if not grouped:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)


def choose_attention(shape: Shape, device: str) -> bool:
    """Leave the fastest backend enabled; returns whether it reads grouped heads."""
    torch.manual_seed(0)
    sizes = [(_TOKENS // _LENGTH, _LENGTH, heads, shape.head_dim) for heads in (shape.heads, *2 * [shape.kv_heads])]
    inputs = [torch.randn(size, device=device, dtype=torch.bfloat16).transpose(1, 2).requires_grad_() for size in sizes]
    _enable(flash=True, cudnn=False)
    right = _gradients(inputs, grouped=False)
    best, choice = float("inf"), (True, False, False)
    for flash, cudnn in ((True, False), (False, True)):
        for grouped in (False, True):
            _enable(flash, cudnn)
            try:
                found = _gradients(inputs, grouped)
                if max(_error(a, b) for a, b in zip(found, right, strict=True)) > _TOLERANCE:
                    continue
                seconds = _seconds(lambda grouped=grouped: _gradients(inputs, grouped))  # type: ignore[misc]
            except RuntimeError:
                continue  # this backend does not take these shapes here
            print(f"attention: {'flash' if flash else 'cudnn'} {grouped=} {1e3 * seconds:.2f} ms", flush=True)
            if seconds < best:
                best, choice = seconds, (flash, cudnn, grouped)
    _enable(*choice[:2])
    return choice[2]


def _enable(flash: bool, cudnn: bool) -> None:
    torch.backends.cuda.enable_flash_sdp(flash)
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    torch.backends.cuda.enable_mem_efficient_sdp(False)


def _gradients(inputs: list[Tensor], grouped: bool) -> tuple[Tensor, ...]:
    q, k, v = inputs
    out = attend(q, k, v, grouped)
    return (out.detach(), *torch.autograd.grad(out.float().square().mean(), inputs))


def _error(found: Tensor, right: Tensor) -> float:
    return float((found - right).float().norm() / right.float().norm())


def _seconds(run: Callable[[], object], times: int = 10) -> float:
    run()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(times):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / times
