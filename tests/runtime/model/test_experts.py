"""Experts: a token's result does not depend on the other tokens, and every expert is reached."""

from __future__ import annotations

import torch

from shoal.runtime.model.loader import load_model
from shoal.runtime.model.mlp import ExpertMlp

from .checkpoints import write_folder
from .oracle import LLADA_MOE_TINY, random_state_dict


def experts(tmp_path, dtype: torch.dtype = torch.float32) -> ExpertMlp:
    folder = write_folder(tmp_path, LLADA_MOE_TINY, random_state_dict(LLADA_MOE_TINY))
    mlp = load_model(folder, dtype=dtype).layers[0].mlp
    assert isinstance(mlp, ExpertMlp)
    return mlp


def test_rows_do_not_depend_on_the_other_rows(tmp_path):
    mlp = experts(tmp_path)
    x = torch.randn(200, 48, generator=torch.Generator().manual_seed(0))
    residual = torch.randn(200, 48, generator=torch.Generator().manual_seed(1))
    together = mlp(x, residual)
    touched = mlp.router(x).softmax(-1).topk(mlp.top_k).indices
    assert len(touched.unique()) == len(mlp.experts)
    for rows in (1, 2, 3, 7, 16, 17, 33, 100):
        assert torch.equal(mlp(x[:rows], residual[:rows]), together[:rows]), rows
        assert torch.equal(mlp(x[9 : 9 + rows], residual[9 : 9 + rows]), together[9 : 9 + rows]), rows


def test_the_router_stays_in_fp32_when_the_weights_do_not(tmp_path):
    mlp = experts(tmp_path, torch.bfloat16)
    assert mlp.router.weight_t.dtype == torch.float32
    assert mlp.experts[0].down.weight_t.dtype == torch.bfloat16
    x = torch.randn(5, 48, dtype=torch.bfloat16)
    assert mlp(x, x).dtype == torch.bfloat16


def test_folded_norms_compute_the_same(tmp_path):
    folder = write_folder(tmp_path, LLADA_MOE_TINY, random_state_dict(LLADA_MOE_TINY))
    plain, folded = load_model(folder), load_model(folder)
    folded.fold_norms()
    hidden, positions = plain.embed(torch.arange(20)), torch.arange(20)
    expected, found = (one.layer(1, hidden, positions, lambda _, q, k, v: q) for one in (plain, folded))
    torch.testing.assert_close(found, expected)
    assert (folded.layers[1].mlp_norm == 1).all()
