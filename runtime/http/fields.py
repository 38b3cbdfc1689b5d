"""Enforces `field_table.py` on the fields of a body.

A null or an empty value asks for nothing and is always accepted. Names that the table does not have:

* in `sampling_params`, and anywhere on /score and /cache/match, they are refused: only our options belong there;
* elsewhere they are refused if they resemble a name that the place takes (a misspelling). Others are accepted, with a
  warning in the log: clients and routers of other servers send fields of their own.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

from ..nearest_name import MISSPELT, did_you_mean, nearest_name
from .api_error import ApiError, bad_request
from .field_table import CHAT, COMPLETIONS, FIELDS, GENERATE, INSIDE, LOOKUP, PLACES, SAMPLING, SCORE, Field
from .wording import shown

logger = logging.getLogger(__name__)
SERVED: Mapping[str, tuple[str, ...]] = {
    place: tuple(field.name for field in FIELDS.values() if place in field.served) for place in PLACES
}
"""For each place the names that it honours."""
_STRICT = (SAMPLING, SCORE, LOOKUP)
_MOST_NAMES = 100
_LONGEST_NAME = 128
_warned: set[tuple[str, str]] = set()


def check_fields(place: str, values: Mapping[str, Any], at: str = "") -> None:
    """Raise ApiError (400) for the first field that may change the answer and can't be honoured.

    `at` is what stands before the names in the client's body, as `sampling_params.`.
    """
    for name, value in values.items():
        if asks_for_nothing(value):
            continue
        field = FIELDS.get(name)
        if field is None:
            _check_unknown(place, name, value, at)
        elif place not in field.served and not accepts(field, place, value):
            why = _why(field, place)
            message = f"{at}{name} is {shown(value)}, which is not supported: {why}; {_instead(field, place)}"
            raise ApiError(400, message, param=at + name, code="unsupported_parameter")


def asks_for_nothing(value: Any) -> bool:
    """Whether a value is null or empty."""
    return value is None or (isinstance(value, list | dict | str | tuple) and not value)


def accepts(field: Field, place: str, value: Any) -> bool:
    """Whether a place that does not honour a field accepts this value, which is neither null nor empty."""
    if is_misplaced(field, place):
        return False
    return field.any_value or any(_same(value, option) for option in field.neutral)


def is_misplaced(field: Field, place: str) -> bool:
    """Whether the field is honoured elsewhere in the same body; then no value of it is neutral here."""
    return place in INSIDE and any(route in field.served for route in (GENERATE, COMPLETIONS, CHAT))


def _check_unknown(place: str, name: str, value: Any, at: str) -> None:
    served = SERVED[place]
    if place in _STRICT:
        raise bad_request(at + name, f"{at}{name} is no field of {place}{did_you_mean(name, served)}")
    near = _misspelt(place, name[:_LONGEST_NAME])
    if near is not None:
        raise bad_request(at + name, f"{at}{name} is no field of {place}; did you mean {near}?")
    if value is not False and (place, name) not in _warned and len(_warned) < _MOST_NAMES:
        _warned.add((place, name))
        logger.warning("Ignored a field of %s that this server does not know: %s", place, shown(name))


@functools.lru_cache(4096)
def _misspelt(place: str, name: str) -> str | None:
    """The field of a place that a name resembles: compared once, for each of a thousand messages may have it."""
    return nearest_name(name, SERVED[place], MISSPELT)


def _why(field: Field, place: str) -> str:
    advised = next((name for name in field.use if place in FIELDS[name].served), None)
    if advised is not None:
        return f"{advised} says so here"
    if field.served:
        return f"it is a field of {', '.join(field.served[:3])}"
    return field.why


def _instead(field: Field, place: str) -> str:
    if not field.neutral or is_misplaced(field, place):
        return "leave it out or send null"
    return "leave it out or send " + " or ".join(shown(option) for option in field.neutral)


def _same(value: Any, option: Any) -> bool:
    if isinstance(value, bool) or isinstance(option, bool):
        return value is option
    return bool(value == option)
