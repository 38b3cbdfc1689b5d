"""Command-line flags from frozen configuration dataclasses: names, types, defaults and help come from the class."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

ALIASES: Mapping[str, tuple[str, ...]] = {
    "model_path": ("--model",),
    "seed": ("--random-seed",),
    "kv_cache_tokens": ("--max-total-tokens",),
    "eviction_policy": ("--radix-eviction-policy",),
    "skip_warmup": ("--skip-server-warmup",),
    "drain_timeout_s": ("--drain-timeout",),
    "log_json": ("--json-logs",),
}
"""Second names of flags: SGLang's where the meaning is the same."""
HIDDEN = frozenset({"null_worker", "null_tokens", "null_delay_s"})
"""Fields whose flags are left out of the help: for measuring and testing."""


def add_flags(parser: argparse.ArgumentParser, config: type) -> None:
    """Add a flag for every field of the dataclass `config`.

    `kv_cache_tokens: int | None` becomes `--kv-cache-tokens INT`; a bool becomes a switch, with a `--no-` form when its
    default is on. The help is the field's paragraph under `Attributes:` in the class's docstring, and its default.
    """
    hints = get_type_hints(config)
    words = attribute_docs(config)
    group = parser.add_argument_group(config.__name__)
    for field in fields(config):
        flag = "--" + field.name.replace("_", "-")
        default = None if field.default is MISSING else field.default
        text = " ".join((words.get(field.name, ""), f"Default: {_shown(default)}.")).strip().replace("%", "%%")
        kind, choices = _value_type(hints[field.name])
        shown = argparse.SUPPRESS if field.name in HIDDEN else text
        options: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": shown}
        names = (flag, *ALIASES.get(field.name, ()))
        if kind is bool:
            action = argparse.BooleanOptionalAction if default else "store_true"
            group.add_argument(*names, action=action, **options)
        else:
            metavar = None if choices else kind.__name__.upper()
            group.add_argument(*names, type=kind, choices=choices, metavar=metavar, **options)


def markdown_table(config: type) -> str:
    """The flags of `config` as a Markdown table, for the documentation."""
    words = attribute_docs(config)
    lines = ["| flag | default | |", "|---|---|---|"]
    for field in fields(config):
        if field.name in HIDDEN:
            continue
        names = ", ".join(f"`{name}`" for name in ("--" + field.name.replace("_", "-"), *ALIASES.get(field.name, ())))
        text = words.get(field.name, "").replace("|", "\\|")
        lines.append(f"| {names} | {_shown(None if field.default is MISSING else field.default)} | {text} |")
    return "\n".join(lines) + "\n"


def given(namespace: argparse.Namespace, config: type) -> dict[str, Any]:
    """The fields of `config` that the command line named; everything else keeps the class's default."""
    values = vars(namespace)
    return {field.name: values[field.name] for field in fields(config) if field.name in values}


def attribute_docs(config: type) -> dict[str, str]:
    """Field name -> its words in the `Attributes:` section of the class's docstring, on one line."""
    section = (config.__doc__ or "").partition("Attributes:\n")[2]
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        entry = re.match(r"        (\w+): (.*)", line)
        if entry:
            name = entry[1]
            found[name] = entry[2].strip()
        elif name and line.startswith("            "):
            found[name] += " " + line.strip()
        elif line.strip():
            break
    return found


def _value_type(hint: Any) -> tuple[Any, list[Any] | None]:
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (part for part in get_args(hint) if part is not NoneType)
    if get_origin(hint) is Literal:
        return str, list(get_args(hint))
    return hint, None


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return "none" if default is None else str(default)
