"""What the kernels' benchmarks share: batches, errors, and that nothing is measured without a GPU."""

import pytest
import torch

from benchmarks.kernel_bench import pool, variant
from shoal.kernels.attention.reference import attention

from .program import printed_by


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    for module in (pool, variant):
        monkeypatch.setattr(module, "DEVICE", "cpu")


@pytest.mark.parametrize("head_major", [False, True])
def test_errors_of_a_batch_are_those_of_bf16_and_grow_with_a_mistake(head_major):
    batch = pool.Pool([5, 30, 3], [20, 40, 9], (4, 2), 16, 2, head_major=head_major)
    for fresh in (False, True):

        def run(layer, fresh=fresh, scale=1.0):
            kv = batch.fresh[layer] if fresh else None
            return attention.reference(batch.q[layer] * scale, batch.pages[layer], 0, batch.batch, fresh_kv=kv)[0]

        assert 1e-5 < batch.error(run, fresh) < 1e-2
        assert batch.error(run, not fresh) > 0.1
        assert batch.error(lambda layer: run(layer, scale=2.0), fresh) > 0.1
    assert batch.flops == 4 * 4 * 128 * (5 * 20 + 30 * 40 + 3 * 9)
    assert batch.bytes == (20 + 40 + 9) * 2 * 2 * 128 * 2 + 2 * 38 * 4 * 128 * 2


def test_places_of_a_batch():
    positions, requests = pool.Pool([2, 3], [20, 20], (2, 2), 16, 1).places(7)
    assert (positions.tolist(), requests.tolist()) == ([7, 8, 7, 8, 9], [0, 0, 1, 1, 1])
    assert positions.dtype == requests.dtype == torch.int32


def test_a_shared_prefix_counts_once():
    batch = pool.Pool([2] * 4, [40] * 4, (2, 2), 16, 1, shared=32, sharers=2)
    tables = batch.tables[:, 0]
    assert (tables[0, :2] == tables[1, :2]).all()
    assert (tables[2, :2] == tables[3, :2]).all()
    assert not (tables[0, :2] == tables[2, :2]).any()
    assert batch.kv_bytes == (2 * 2 + 4) * 16 * 2 * 2 * 128 * 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["kernels", "gpu_phases", "throughput", "step_variants"])
def test_nothing_is_written_without_a_gpu(name, tmp_path):
    out = tmp_path / "rows.csv"
    assert "needs a CUDA GPU" in printed_by(f"benchmarks/{name}.py", "--out", str(out))
    assert not out.exists()
