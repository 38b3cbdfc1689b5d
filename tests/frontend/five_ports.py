"""Five more programs as people write them for sglang: `sgl` is sglang or shoal, nothing else differs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

TEMPERATURE: dict[str, Any] = {"temperature": 0}


def price_of(s: Any, sgl: Any, name: str, variable: str) -> int:
    """A helper that gets the state, appends to it, and reads."""
    s += sgl.user(f"How much is the {name}?")
    s += sgl.assistant(sgl.gen(variable, max_tokens=8, **TEMPERATURE))
    return int(s[variable])


def five_ports(sgl: Any) -> SimpleNamespace:
    """The programs in the language that `sgl` offers."""

    @sgl.function
    def react(s, prices, budget, wanted, tools):
        """Think, act, observe, until the money is spent; tools are plain Python."""
        s += sgl.system(prices)
        spent, bought = 0, []
        for step in range(len(wanted)):
            s += sgl.user(f"How much is the {wanted[step]}?")
            s += sgl.assistant_begin()
            s += sgl.gen(f"act_{step}", max_tokens=8, stop=["\n", "<|user|>"], **TEMPERATURE)
            s += sgl.assistant_end()
            spent = tools["add"](spent, int(s[f"act_{step}"]))
            if spent > budget:
                break
            bought.append(wanted[step])
        s["bought"] = bought
        s["steps"] = step + 1

    @sgl.function
    def map_reduce(s, parts, colour):
        """Every part is read in a branch of its own; the parent sees what came out."""
        forks = s.fork(len(parts))
        for fork, part in zip(forks, parts, strict=True):
            fork += sgl.system(part)
            fork += sgl.user(f"Which things are {colour}?")
            fork += sgl.assistant(sgl.gen("found", max_tokens=16, **TEMPERATURE))
        found = [fork["found"] for fork in forks]
        forks.join()
        s += sgl.system("\n".join(parts).replace("\nPrices:", ""))
        s += sgl.user(f"Which things are {colour}?")
        s += sgl.assistant(sgl.gen("all", max_tokens=32, **TEMPERATURE))
        s["parts"] = found

    @sgl.function
    def tournament(s, prices, names):
        """A choice in a loop decides what the next question is."""
        s += sgl.system(prices)
        best = names[0]
        for index, name in enumerate(names[1:]):
            s += sgl.user(f"Which is cheaper, the {best} or the {name}?")
            s += sgl.assistant(sgl.gen(f"winner_{index}", choices=[f"the {best}", f"the {name}"]))
            best = s[f"winner_{index}"].removeprefix("the ")
        s["best"] = best

    @sgl.function
    def chat(s, prices, questions):
        """A conversation that is shown as it comes."""
        s += sgl.system(prices)
        for index, question in enumerate(questions):
            s += sgl.user_begin() + question + sgl.user_end()
            s += sgl.assistant_begin() + sgl.gen(f"answer_{index}", max_tokens=16, **TEMPERATURE) + sgl.assistant_end()

    @sgl.function
    def look_up(s, prices, name):
        s += sgl.system(prices)
        s["price"] = price_of(s, sgl, name, "said")

    @sgl.function
    def shopping(s, prices, names, where):
        """Calls another program, and a helper that gets its own state."""
        first = look_up.run(prices=prices, name=names[0], backend=where)
        s += sgl.system(prices)
        s += sgl.user(f"How much is the {names[0]}?")
        s += sgl.assistant(first["said"])
        s["total"] = first["price"] + price_of(s, sgl, names[1], "second")
        with s.copy() as aside:
            s["third"] = price_of(aside, sgl, names[2], "aside")
        return names[0]

    return SimpleNamespace(
        react=react, map_reduce=map_reduce, tournament=tournament, chat=chat, look_up=look_up, shopping=shopping
    )  # fmt: skip
