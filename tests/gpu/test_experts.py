"""A model with experts on a GPU: the CPU's answers, with and without graphs, alone and in company."""

import pytest
import torch

from shoal.runtime.request.sampling_params import SamplingParams

from ..runtime.engine.test_families import state_of
from ..runtime.model.checkpoints import write_folder
from ..runtime.model.oracle import LLADA_MOE_TINY
from ..runtime.tiny import EOS, MASK, VOCABULARY, make_engine, tokens, worker_of, write_tokenizer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
CONFIG = {
    **LLADA_MOE_TINY, "vocab_size": VOCABULARY, "eos_token_id": EOS, "pad_token_id": EOS, "mask_token_id": MASK,
    "num_attention_heads": 4, "hidden_size": 64, "num_hidden_layers": 4, "moe_layer_freq": [1] * 4,
}  # fmt: skip
CONFIG |= {"num_key_value_heads": 4} if "num_key_value_heads" in CONFIG else {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tokenizer(write_folder(tmp_path_factory.mktemp("moe"), CONFIG, state_of(CONFIG)))


@pytest.mark.parametrize("graphs", [True, False])
def test_answers_are_those_of_the_cpu_and_company_changes_nothing(folder, graphs):
    prompts = [tokens(5 + 3 * i, seed=i) for i in range(7)]
    params = SamplingParams(max_new_tokens=24, steps=12)
    answers = {}
    for device in ("cpu", "cuda"):
        options = {"device": device, "dtype": "float32", "disable_cuda_graph": not graphs, "max_running_requests": 8}
        with make_engine(folder, depth=2, **options) as engine:
            for mode in ("none", "dual", "bicache"):
                outputs = engine.generate(prompts, params, cache_mode=mode)
                answers[device, mode] = [out.token_ids for out in outputs]
                engine.flush_cache()
            if device == "cuda":
                alone = [engine.generate(prompt, params, cache_mode="dual").token_ids for prompt in prompts]
                mlp = worker_of(engine).executor.decoder.layers[0].mlp
                gate_up, down = mlp.stacked
                for number, expert in enumerate(mlp.experts):
                    assert expert.gate_up.weight_t.data_ptr() == gate_up[number].data_ptr()
                    assert expert.down.weight_t.data_ptr() == down[number].data_ptr()
    assert alone == answers["cuda", "dual"]
    for mode in ("none", "dual", "bicache"):
        same = sum(a == b for a, b in zip(answers["cpu", mode], answers["cuda", mode], strict=True))
        assert same >= len(prompts) - 1, mode


def test_bf16_weights_answer(folder):
    with make_engine(folder, depth=2, device="cuda", max_running_requests=4) as engine:
        output = engine.generate(tokens(20), SamplingParams(max_new_tokens=16, steps=8, ignore_eos=True))
        assert len(output.token_ids) == 16
