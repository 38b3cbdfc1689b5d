import subprocess
import sys
from pathlib import Path

import pytest

from shoal.runtime.request.plain_struct import Struct

ROOT = Path(__file__).resolve().parents[3]


class Item(Struct, frozen=True):
    name: str
    parts: list[int] = []  # noqa: RUF012 (a Struct copies it)


class Longer(Item):
    more: int = 3


def test_fields_by_place_and_by_name():
    one, other = Longer("a", more=5), Longer("b", [1])
    assert (one.name, one.parts, one.more) == ("a", [], 5)
    assert (other.name, other.parts, other.more) == ("b", [1], 3)
    one.parts.append(1)
    assert Longer("c").parts == []


@pytest.mark.parametrize(("values", "named"), [((), {}), (("a", [], 1, 2), {}), (("a",), {"less": 1})])
def test_wrong_fields(values, named):
    with pytest.raises(TypeError, match="Longer"):
        Longer(*values, **named)


def test_an_engine_runs_without_the_packages_of_the_server():
    """Machines made for training have torch and transformers alone."""
    absent = ("msgspec", "zmq", "fastapi", "starlette", "pydantic", "orjson", "uvicorn", "uvloop", "prometheus_client")
    code = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1:]))
import shoal
import shoal.runtime.worker.gpu.runner
from shoal.runtime.request.forward import Struct

with shoal.Engine("shop", device="cpu") as engine:
    for mode in ("none", "dual", "bicache"):
        params = shoal.SamplingParams(max_new_tokens=32, ignore_eos=True)
        print(engine.generate([[5, 6, 7, 8] * 12], params, cache_mode=mode)[0].token_ids)
print(Struct.__module__)
"""
    command = [sys.executable, "-c", code]
    outputs = [
        subprocess.run([*command, *names], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        for names in ((), absent)
    ]
    (*answers, whole), (*others, plain) = outputs
    assert [len(answer.split(",")) for answer in answers] == [32, 32, 32]
    assert answers == others
    assert (whole, plain) == ("msgspec", "shoal.runtime.request.plain_struct")
