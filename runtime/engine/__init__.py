"""The engine in this process. Its import loads torch, with a limit on how long idle OpenMP threads spin."""

from ..cpu_tuning import load_torch

load_torch()
