"""The tables of docs/fields.md, from the code.

python -m tests.runtime.http.field_tables   # writes them anew
"""

from __future__ import annotations

from shoal.runtime.http.field_table import FIELDS, GENERATING, PLACES, Field
from shoal.runtime.http.wording import shown

from .generated_tables import write


def tables() -> str:
    """What stands between the marks."""
    served = [field for field in FIELDS.values() if field.served]
    free = [field for field in FIELDS.values() if not field.served and field.any_value]
    refused: dict[tuple[str, str], list[Field]] = {}
    for field in FIELDS.values():
        if not field.served and not field.any_value:
            reason = f"send {' or '.join(f'`{name}`' for name in field.use)}" if field.use else field.why
            refused.setdefault((_values(field), reason), []).append(field)
    lines = ["| field | honoured in | accepted elsewhere |", "|---|---|---|"]
    lines += [f"| `{field.name}` | {_places(field)} | {_values(field)} |" for field in served]
    lines += ["", "Accepted with any value, as they can't change an answer: " + _names(free) + ".", ""]
    lines += ["| refused | but for | because |", "|---|---|---|"]
    lines += [f"| {_names(fields)} | {values} | {reason} |" for (values, reason), fields in refused.items()]
    return "\n".join(lines) + "\n"


def _names(fields: list[Field]) -> str:
    return ", ".join(f"`{field.name}`" for field in fields)


def _places(field: Field) -> str:
    named = [f"`{place}`" for place in PLACES if place in field.served]
    if set(GENERATING) <= set(field.served):
        named = ["generating routes", *(f"`{p}`" for p in PLACES if p in field.served and p not in GENERATING)]
    return ", ".join(named)


def _values(field: Field) -> str:
    if field.any_value:
        return "any value"
    return ", ".join(f"`{shown(value)}`" for value in field.neutral) or "null"


if __name__ == "__main__":
    write("fields.md", tables())
