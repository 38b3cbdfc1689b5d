"""`shoal profile MODEL --data FILE.jsonl`: flags and help come from ProfileOptions."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from ..runtime.errors import ConfigError
from ..runtime.flags import attribute_docs
from .options import ProfileOptions

_LISTS: dict[str, type] = {"ratios": float, "captures": str, "depths": int, "intervals": int, "margins": int}
_SWITCHES = ("restart", "strict")


def make_parser() -> argparse.ArgumentParser:
    """The command's parser."""
    parser = argparse.ArgumentParser(
        prog="shoal profile",
        description="Measure how deep a shared prefix may be reused, and write depth_profile.json and a report.",
        epilog="Measurements are kept in the folder: the same command goes on after a stop. Without a limit "
        "(--max-accuracy-drop, --min-agreement, --cosine) an accuracy drop of 0.005 is kept where all rows have "
        "answers and mode none gives most of each kind's, else an agreement of 0.99.",
    )
    words, hints = attribute_docs(ProfileOptions), get_type_hints(ProfileOptions)
    for field in fields(ProfileOptions):
        name, text = field.name, words[field.name]
        if name == "model":
            parser.add_argument("model", help=text)
            continue
        default: Any = field.default
        if name != "data" and name not in _SWITCHES and default is not None:
            text += f" Default: {','.join(map(str, default)) if name in _LISTS else default}."
        options: dict[str, Any] = {"dest": name, "help": text.replace("%", "%%"), "default": argparse.SUPPRESS}
        if name == "data":
            options["required"] = True
        if name in _SWITCHES:
            options["action"] = "store_true"
        elif name not in _LISTS:
            kind = _type_of(hints[name])
            options |= {"type": kind, "metavar": "FILE" if name == "data" else kind.__name__.upper()}
        parser.add_argument("--" + name.replace("_", "-"), **options)
    return parser


def parse(arguments: list[str]) -> ProfileOptions:
    """Options of a command line. Raises ConfigError for lists that are none; argparse exits for unknown flags."""
    values = vars(make_parser().parse_args(arguments))
    for name, kind in _LISTS.items():
        if name in values:
            values[name] = _list(name, values[name], kind)
    return ProfileOptions(**values)


def _type_of(hint: Any) -> type[int] | type[float] | type[str]:
    """The type of a field's values, besides None."""
    (kind,) = (kind for kind in (int, float, str) if kind in (get_args(hint) or (hint,)))
    return kind


def _list(name: str, text: str, kind: type) -> tuple[Any, ...]:
    try:
        return tuple(kind(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        words = {float: "numbers", int: "whole numbers", str: "names"}[kind]
        message = f"{name} is {text!r}; it must be {words} with commas between them"
        raise ConfigError(message, field=name, value=text, limit=words) from None


def main(arguments: list[str]) -> None:
    """Run the command."""
    options = parse(arguments)
    from rich.console import Console

    from .main import run_profile

    run_profile(options, Console())
