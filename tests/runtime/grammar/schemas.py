"""Random JSON Schemas of the keywords that are honoured, and a vocabulary that spells their texts."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

NAMES = st.sampled_from(["a", "b", "name", "x y", 'q"', "é", "total"])
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-99, 99), st.sampled_from(["red", 'a"b', "é\n", "", "a\\b", 1.5])
)


def _bounds(low: str, high: str, most: int) -> st.SearchStrategy[dict[str, int]]:
    pairs = st.tuples(st.integers(0, most), st.integers(0, most)).map(sorted)
    return st.one_of(
        st.just({}), pairs.map(lambda p: {low: p[0], high: p[1]}), st.integers(0, most).map(lambda n: {high: n}),
        st.integers(0, most).map(lambda n: {low: n}),
    )  # fmt: skip


def _leaf() -> st.SearchStrategy[Any]:
    numbers = st.fixed_dictionaries({"type": st.sampled_from(["integer", "number"])}, optional={
        "minimum": st.integers(-50, 5), "exclusiveMaximum": st.integers(7, 1500)})  # fmt: skip
    return st.one_of(
        st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"]}, {"format": "date-time",
                         "type": "string"}, {"type": "string", "pattern": "^[a-c]{1,3}-\\d$"}, {"pattern": "b+"}]),
        _bounds("minLength", "maxLength", 6).map(lambda b: {"type": "string", **b}),
        numbers,
        st.fixed_dictionaries({"type": st.sampled_from(["integer", "number"]), "multipleOf": st.integers(1, 60)},
                              optional={"minimum": st.integers(-90, 5), "maximum": st.integers(60, 1500)}),
        st.fixed_dictionaries({"type": st.just("string"), "pattern": st.sampled_from(["^[a-c]+$", "b"])}, optional={
            "minLength": st.integers(0, 3), "maxLength": st.integers(3, 6)}),
        st.lists(SCALARS, min_size=1, max_size=3).map(
            lambda values: {"type": ["string", "boolean", "null"], "not": {"enum": [v for v in values if not isinstance(
                v, int | float) or isinstance(v, bool)] or [None]}}),
        st.lists(SCALARS, min_size=1, max_size=4).map(lambda values: {"enum": values}),
        SCALARS.map(lambda value: {"const": value}),
    )  # fmt: skip


def _inner(child: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    @st.composite
    def objects(draw: Any) -> Any:
        properties = draw(st.dictionaries(NAMES, child, max_size=4))
        required = draw(st.lists(st.sampled_from(sorted(properties)), unique=True)) if properties else []
        extra = draw(st.sampled_from([{}, {"additionalProperties": False}]))
        return {"type": "object", "properties": properties, "required": required, **extra}

    arrays = st.tuples(child, _bounds("minItems", "maxItems", 3)).map(
        lambda p: {"type": "array", "items": p[0], **p[1]}
    )
    tuples = st.lists(child, min_size=1, max_size=2).map(lambda p: {"type": "array", "prefixItems": p, "items": False})
    sets = st.tuples(st.lists(SCALARS, min_size=1, max_size=7), _bounds("minItems", "maxItems", 4)).map(
        lambda p: {"type": "array", "items": {"enum": p[0]}, "uniqueItems": True, **p[1]}
    )
    patterned = st.tuples(child, child, child, st.sampled_from([{}, {"required": ["total"]}])).map(
        lambda p: {"type": "object", "properties": {"total": p[0]}, "additionalProperties": False,
                   "patternProperties": {"^[xy]": p[1], "[yz]$": p[2]}, **p[3]})  # fmt: skip
    tagged = st.lists(child, min_size=1, max_size=3).map(
        lambda parts: {"oneOf": [
            {"type": "object", "required": ["kind"], "properties": {"kind": {"const": n}, "of": part}}
            for n, part in enumerate(parts)]})  # fmt: skip
    one_of = st.lists(child, min_size=1, max_size=3).map(lambda parts: {"oneOf": parts})
    maps = child.map(lambda value: {"type": "object", "additionalProperties": value})
    choices = st.lists(child, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts})
    return st.one_of(objects(), objects(), arrays, tuples, maps, choices, sets, patterned, tagged, one_of)


SCHEMAS = st.recursive(_leaf(), _inner, max_leaves=6)
WORDS = ['{"', '":', '": ', '", "', '"}', '"]', "},", "true", "false", "null", "name", "al", "12", '","', "re"]


def bytes_of_tokens() -> dict[int, bytes]:
    """Every byte is a token, as in byte-level BPE, beside some longer ones."""
    tokens = [bytes([byte]) for byte in range(256)] + [word.encode() for word in WORDS] + ["é".encode()]
    return dict(enumerate(tokens))
