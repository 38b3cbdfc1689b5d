"""lm-eval's local-completions and local-chat-completions on a local task of price lists, against a real server process.

The task has no hub access; what lm-eval scores through HTTP must be what the engine gives in process. In mode `dual`:
what else is in the cache then changes nothing, and the same text is what must come out.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import pytest

from shoal.runtime.engine.engine import Engine
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.shop.task import ask_cheaper, ask_colour, ask_price, ask_total

from .process import chat_messages, chat_text

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.timeout(600)
MAX_TOKENS = 32
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_text: "{{{{{field}}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: ["<|end|>"]
  max_gen_toks: {max_tokens}
  cache_mode: dual
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1
"""


@pytest.fixture(scope="module")
def questions(prices):
    rng = random.Random(11)
    return [ask(rng, prices, json) for ask in (ask_price, ask_cheaper, ask_colour, ask_total) for json in (False, True)]


@pytest.fixture(scope="module")
def expected(prices, questions):
    """What the engine gives in process, in order."""
    with Engine("shop", kv_cache_tokens=16384) as engine:
        params = SamplingParams(max_new_tokens=MAX_TOKENS)
        outputs = engine.generate([chat_messages(prices, q.text) for q in questions], params, cache_mode="dual")
    return [output.text for output in outputs]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory, prices, questions):
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "prices.jsonl"
    rows = [{"text": chat_text(prices, q.text), "question": q.text, "answer": q.answer} for q in questions]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, field in (("prices_text", "text"), ("prices_chat", "question")):
        text = TASK.format(name=name, data=data, field=field, max_tokens=MAX_TOKENS)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


RUN_EACH = """
import json, sys
from lm_eval.__main__ import cli_evaluate
for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    cli_evaluate()
"""


@pytest.fixture(scope="module")
def evaluated(server, prices, tasks):
    """lm-eval's own accuracy and the texts that it got, by task. Both in one process: it takes seconds to start."""
    with server.client() as client:
        tokenizer = client.get("/get_model_info").json()["tokenizer_path"]
    tokens = f",tokenizer_backend=huggingface,tokenizer={tokenizer}"
    chat = ("--apply_chat_template", "--system_instruction", prices.text)
    runs = [
        [
            "run", "--model", kind, "--tasks", task, "--include_path", str(tasks), "--log_samples", "--batch_size", "1",
            "--model_args", f"model=shop,base_url={server.url}{route},num_concurrent=4,max_retries=1{more}",
            "--output_path", str(tasks / task), *flags,
        ]
        for kind, route, task, more, flags in (
            ("local-completions", "/v1/completions", "prices_text", tokens, ()),
            ("local-chat-completions", "/v1/chat/completions", "prices_chat", "", chat),
        )
    ]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tasks / "hf"),
                   "OPENAI_API_KEY": "", "OMP_NUM_THREADS": "1"}  # fmt: skip
    command = [sys.executable, "-c", RUN_EACH, json.dumps(runs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {task: found_in(tasks / task, task) for task in ("prices_text", "prices_chat")}


def found_in(out, task):
    (scores,) = out.rglob("results_*.json")
    (samples,) = out.rglob(f"samples_{task}_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    texts = [row["resps"][0][0] for row in sorted(rows, key=lambda row: row["doc_id"])]
    results = json.loads(scores.read_text(encoding="utf-8"))["results"][task]
    (accuracy,) = (value for name, value in results.items() if name.startswith("exact_match,"))
    return accuracy, texts


@pytest.mark.parametrize("task", ["prices_text", "prices_chat"])
def test_local_completions_and_local_chat_completions(evaluated, task, questions, expected):
    accuracy, texts = evaluated[task]
    assert texts == expected
    assert accuracy == sum(t == q.answer for t, q in zip(expected, questions, strict=True)) / len(questions)


def test_what_lm_eval_asks_for_log_likelihoods_is_refused(client):
    """The very body that its loglikelihood requests have."""
    body = {"model": "shop", "prompt": [[5, 6, 7]], "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234,
            "echo": True}  # fmt: skip
    reply = client.post("/v1/completions", json=body, headers={"authorization": "Bearer"})
    assert reply.status_code == 400
    assert "log probabilities" in reply.json()["error"]["message"]
