"""Checks of options and parameters: what they take, what they refuse, and in which words."""

from __future__ import annotations

import math

import pytest

from shoal.runtime.checks import OPTION, PARAMETER
from shoal.runtime.errors import ConfigError, InvalidRequestError

NUMBER = "a number of at least 0 and at most 1"


@pytest.mark.parametrize(
    ("check", "good", "bad", "limit"),
    [
        (lambda v: OPTION.integer("x", v, 1), (1, 2**63 - 1), (0, True, 1.0, "1", None), "an integer of at least 1"),
        (lambda v: OPTION.integer("x", v, 1), (), (2**63,), f"an integer of at least 1 and at most {2**63 - 1}"),
        (lambda v: OPTION.integer("x", v, 0, 9), (0, 9), (-1, 10), "an integer of at least 0 and at most 9"),
        (lambda v: OPTION.number("x", v, 0, 1), (0, 0.5, 1), (-0.1, 1.1, math.nan, math.inf, True, "1"), NUMBER),
        (lambda v: OPTION.number("x", v, 0, 1, above=True), (0.1, 1), (0,), "a number above 0 and at most 1"),
        (lambda v: OPTION.number("x", v, 0, above=True, of="s"), (1,), (0, math.inf), "a number of s above 0"),
        (lambda v: OPTION.number("x", v, 0, infinite=True), (math.inf,), (math.nan, -1), "a number of at least 0"),
        (lambda v: OPTION.one_of("x", v, ("a", "b")), ("a",), ("c", None, 1), "one of a, b"),
        (lambda v: OPTION.flag("x", v), (True, False), (1, 0, None), "true or false"),
    ],
)
def test_checks(check, good, bad, limit):
    for value in good:
        check(value)
    for value in bad:
        with pytest.raises(ConfigError) as caught:
            check(value)
        assert caught.value.message == f"x is {value!r}; it must be {limit}"
        assert (caught.value.field, caught.value.limit) == ("x", limit)
        assert caught.value.value is value


def test_checks_of_parameters_raise_the_request_s_error():
    with pytest.raises(InvalidRequestError, match="x is 1; it must be true or false"):
        PARAMETER.flag("x", 1)
