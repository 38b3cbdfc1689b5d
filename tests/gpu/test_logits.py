"""Whole models: logits on a GPU, in bf16 and fp32, against the CPU's in fp32, on the same weights."""

import numpy as np
import pytest
import torch

from shoal.runtime.model.loader import load_model
from shoal.runtime.request.forward import ForwardItem
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.runtime.worker.gpu.refresh_plan import plan_refresh
from shoal.runtime.worker.gpu.runner import CudaRunner
from shoal.runtime.worker.gpu.slot_request import SlotRequest
from shoal.runtime.worker.gpu.slots import CanvasSlots
from shoal.runtime.worker.pools import BoundaryPool, KVPool

from ..runtime import tiny
from ..runtime.model.checkpoints import write_folder
from ..runtime.model.oracle import random_state_dict
from ..runtime.tiny import tokens

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
PAGE, BANDS, LENGTHS = 16, 3, (41, 123, 7, 64)


def logits_of(folder, device, dtype):
    """Logits of all positions of four ragged sequences, by the fused runner, fp32 on the CPU."""
    decoder = load_model(folder, dtype=dtype, device=device)
    bands = -(-decoder.num_layers // BANDS)
    kv = KVPool(decoder.config, 64 * bands, PAGE, BANDS, dtype, decoder.device)
    boundary = BoundaryPool(decoder.config, 4, PAGE, dtype, decoder.device)
    slots = CanvasSlots(len(LENGTHS), 128, 8, bands, PAGE, decoder.device, decoder.config.vocab_size, 0)
    runner = CudaRunner(decoder, kv, boundary, slots)
    pages = np.random.default_rng(0).permutation(64 * bands).astype(np.int32)
    numbers, items = [], []
    for index, length in enumerate(LENGTHS):
        count = -(-length // PAGE) * bands
        table, pages = pages[:count].reshape(bands, -1), pages[count:]
        sampling = SamplingParams(max_new_tokens=8)
        text = np.array(tokens(length, seed=index))
        masked = np.zeros(length, np.bool_)
        numbers.append(slots.take(SlotRequest(text, masked, length, table, sampling)))
        targets = np.array([[0, 0], [length - 1, 0]]) + decoder.config.shift_logits
        items.append(ForwardItem(str(index), 0, length, length, 0, 0, 0, targets=targets))
    plan = plan_refresh(items, numbers, slots.page_tables, PAGE, int(decoder.config.shift_logits))
    hidden = runner.refresh(plan)
    assert hidden.shape[0] == sum(LENGTHS)
    return decoder.logits(hidden).float().cpu()


@pytest.mark.parametrize("model", ["llada", "dream"])
def test_logits(model, tmp_path):
    # Weights as they are initialised: the tests' other models are sharpened until bf16 is a toss-up on any device.
    values = {**tiny.CONFIGS[model], **({"hidden_size": 64} if model == "dream" else {"d_model": 64, "n_heads": 4})}
    values |= {} if model == "dream" else {"n_kv_heads": 4}
    write_folder(folder := tmp_path / model, values, random_state_dict(values, seed=7))
    expected = logits_of(folder, "cpu", torch.float32).double()
    for dtype, bound in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2)):
        found = logits_of(folder, "cuda", dtype).double()
        error = (found - expected).norm() / expected.norm()
        assert error < bound, (dtype, float(error))
