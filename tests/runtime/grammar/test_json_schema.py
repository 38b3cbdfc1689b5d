"""Texts under a JSON Schema's grammar: whatever tokens are chosen, they satisfy it in the length that was promised."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.runtime.grammar.automaton import FAR, Automaton
from shoal.runtime.grammar.errors import GrammarError
from shoal.runtime.grammar.grammar import Grammar
from shoal.runtime.grammar.json_schema import REF_DEPTH, expression_of
from shoal.runtime.grammar.state import GrammarState, TokenSets
from shoal.runtime.grammar.vocabulary import Vocabulary

from .schemas import SCHEMAS, bytes_of_tokens

TOKENS = bytes_of_tokens()
VOCABULARY = Vocabulary.of(TOKENS)
SETS = TokenSets(VOCABULARY)
END = 9_999


def text_of(grammar: Grammar, length: int, rng: random.Random) -> str:
    """A text of at most `length` tokens, its end included, of tokens drawn from those that are allowed."""
    state, data = GrammarState(grammar, SETS, [END]), b""
    for left in range(length, 0, -1):
        allowed = state.allowed(left).tolist()
        assert allowed, data
        token = END if END in allowed and rng.random() < 0.1 else rng.choice(allowed)
        if state.take(token):
            return data.decode()
        data += TOKENS[token]
    raise AssertionError(f"no end: {data!r}")


def satisfies(text: str, schema: Any) -> bool:
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    return True


def grammar_or_reason(schema: Any) -> Grammar | str:
    try:
        return Grammar.of(expression_of(schema), VOCABULARY)
    except GrammarError as error:
        return error.reason


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(schema=SCHEMAS, seed=st.integers(0, 99))
def test_every_text_satisfies_its_schema_also_in_the_fewest_tokens(schema, seed):
    grammar = grammar_or_reason(schema)
    if isinstance(grammar, str):
        # a list of at least one item of no kind; two schemas of a oneOf that overlap; a oneOf in it that is too large
        assert any(words in grammar for words in ("no text satisfies", "might satisfy two", "too large")), grammar
        return
    rng, least = random.Random(seed), grammar.least_tokens
    for length in (least, least + 1, least + 7, least + 60, least + 60):
        assert satisfies(text_of(grammar, length, rng), schema)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "object"}, ['{}', '{"a":1}', '{"a": [true, {"b":null}], "c":"x"}'], ["[]", "{", '{"a" :1}', "{}{}"]),
        ({"properties": {"a": {"type": "integer"}, "b": True}, "required": ["b"]}, ['{"b":1}', '{"a":1, "b":"x"}'],
         ['{"a":1}', '{"b":1,"a":1}', '{"a":"x","b":1}', '{"b":1,"c":1}']),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}, ["[true]", "[true, false]"],
         ["[]", "[true,false,true]", "[1]"]),
        ({"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "minItems": 1}, ["[1]", "[1,2]", '[1,2,"x"]'],
         ["[]", "[2]", "[1,3]"]),
        ({"type": "string", "maxLength": 3}, ['"abc"', '"é€😀"', '"\\n\\""', '""'], ['"abcd"', '"\n"', "abc"]),
        ({"type": ["integer", "null"]}, ["0", "-17", "null"], ["1.5", "01", '"1"']),
        ({"type": "number", "minimum": 1, "exclusiveMaximum": 3}, ["1", "2.75", "1.0"], ["3", "0.9", "3.0"]),
        ({"enum": ["red", 3, None, [1, "x"]], "type": ["string", "integer"]}, ['"red"', "3"], ["null", '[1,"x"]']),
        ({"const": {"a": "é"}}, ['{"a":"é"}'], ["{}"]),
        ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, ["1", '"x"'], ["true"]),
        ({"allOf": [{"type": "null"}]}, ["null"], ["1"]),
        ({"type": "string", "pattern": "b+"}, ['"abc"', '"b"'], ['"ac"']),
        ({"type": "string", "format": "date"}, ['"2026-02-28"'], ['"2026-13-01"', '"26-01-01"']),
        ({"type": "object", "required": ["a"], "additionalProperties": {"type": "null"}}, ['{"a":null}'], ['{"a":1}',
         "{}"]),
        ({"$ref": "#/$defs/x~1y", "$defs": {"x/y": {"type": "null"}}}, ["null"], ["1"]),
        ({"type": "integer", "multipleOf": 7, "minimum": -20, "maximum": 30}, ["0", "-14", "28"],
         ["35", "8", "-21", "-0"]),
        ({"type": ["number", "null"], "multipleOf": 5.0}, ["15", "-5", "0", "null"], ["7", "2.5"]),
        ({"type": "integer", "multipleOf": 1000}, ["0", "12000", "-999000"], ["100", "1500", "0000"]),
        ({"type": "array", "items": {"enum": ["a", "b", 3]}, "uniqueItems": True}, ["[]", '["b", "a"]', '[3,"a","b"]'],
         ['["a","a"]', '["c"]', '["a",3,"b",3]']),
        ({"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 9}, "uniqueItems": True,
          "minItems": 2, "maxItems": 3}, ["[1,5]", "[2,3,9]"], ["[4]", "[1,1]", "[1,2,3,4]"]),
        ({"items": {"enum": [1, 1.0, True]}, "uniqueItems": True}, ["[1,true]"], ["[1,1.0]"]),
        ({"items": {"type": "boolean"}, "uniqueItems": True, "minItems": 2}, ["[true,false]", "[false, true]"],
         ["[true]", "[true,true]", "[false,true,false]"]),
        ({"patternProperties": {"^x-": {"type": "integer"}, "^y": {"type": "null"}}, "additionalProperties": False},
         ["{}", '{"x-a":1}', '{"y":null, "x-":2,"x-":3}'], ['{"x":1}', '{"x-a":null}', '{"z":1}']),
        ({"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"], "patternProperties":
          {"^n": True, "m$": {"type": "integer"}}, "maxProperties": 2}, ['{"id":1}', '{"id":1,"n":"x"}',
         '{"id":1,"xm":2}'], ['{"n":1}', '{"id":1,"n":1,"na":1}', '{"id":1,"nm":"x"}']),
        ({"oneOf": [{"enum": [1, 2, 3]}, {"enum": [2, 4]}]}, ["1", "3", "4"], ["2"]),
        ({"oneOf": [{"type": "object", "properties": {"k": {"const": "a"}, "n": {"type": "integer"}},
                     "required": ["k"]}, {"$ref": "#/$defs/b"}],
          "$defs": {"b": {"type": "object", "properties": {"k": {"const": "b"}},
          "required": ["k"]}}}, ['{"k":"a","n":1}', '{"k":"b"}'], ['{"k":"b","n":1}', "{}"]),
        ({"oneOf": [{"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}, {"type": "object",
          "properties": {"b": {"type": "null"}}, "required": ["b"], "additionalProperties": False}]},
         ['{"a":null}', '{"b":null}'], ["{}", '{"a":null,"b":null}']),
        ({"oneOf": [{"type": "integer", "maximum": 3}, {"type": "integer", "exclusiveMinimum": 3}]}, ["3", "4"],
         ['"x"']),
        ({"type": "string", "maxLength": 2, "not": {"enum": ["a", "é"]}}, ['"b"', '"aa"', '""'], ['"a"', '"é"']),
        ({"not": {"type": ["string", "object", "array"]}}, ["1", "null", "-2.5"], ['"x"', "{}", "[]"]),
        ({"type": "integer", "minimum": 0, "maximum": 3, "not": {"anyOf": [{"const": 0}, {"const": 2}]}}, ["1", "3"],
         ["0", "2"]),
        ({"type": "string", "pattern": "^[ab]+$", "minLength": 2, "maxLength": 3}, ['"ab"', '"aaa"'],
         ['"a"', '"abab"']),
        ({"title": "t", "description": "d", "type": "null", "default": None}, ["null"], ["1"]),
    ],
)  # fmt: skip
def test_keywords(schema, good, bad):
    automaton = Automaton.of(expression_of(schema))
    for text in good:
        assert satisfies(text, schema)
        assert automaton.accepts(text.encode()), text
    for text in bad:
        assert not automaton.accepts(text.encode()), text


def test_a_schema_inside_itself_ends_after_some_depth():
    node = {"type": "object", "properties": {"v": {"type": "integer"}, "next": {"$ref": "#"}}, "required": ["v"]}
    automaton = Automaton.of(expression_of(node))
    for depth in range(REF_DEPTH + 2):
        text = '{"v":1,"next":' * depth + '{"v":1}' + "}" * depth
        assert automaton.accepts(text.encode()) == (depth <= REF_DEPTH)


@pytest.mark.parametrize(
    ("schema", "path", "words"),
    [
        ({"properties": {"x": {"type": "string", "contentEncoding": "base64"}}}, ("properties", "x",
         "contentEncoding"), ""),
        ({"type": "string", "pattern": "(?=a)"}, ("pattern",), "not regular"),
        ({"type": "string", "format": "email"}, ("format",), "one of date"),
        ({"type": "array", "uniqueItems": True}, ("uniqueItems",), "64 values"),
        ({"type": "array", "uniqueItems": 1}, ("uniqueItems",), "true or false"),
        ({"uniqueItems": True, "prefixItems": [{"const": 1}], "items": {"const": 1}}, ("uniqueItems",), "values"),
        ({"type": "integer", "multipleOf": 1001}, ("multipleOf",), "1 to 1000"),
        ({"type": "number", "multipleOf": 0.01}, ("multipleOf",), "whole numbers"),
        ({"type": "integer", "multipleOf": True}, ("multipleOf",), "whole numbers"),
        ({"type": "integer", "multipleOf": 0}, ("multipleOf",), "whole numbers"),
        ({"type": "number", "minimum": 0.5}, ("minimum",), "whole numbers"),
        ({"type": "object", "properties": {"a": True}, "minProperties": 1}, ("minProperties",), "required"),
        ({"type": "object", "propertyNames": {"pattern": "a"}}, ("propertyNames",), "not supported"),
        ({"patternProperties": ["a"]}, ("patternProperties",), "object of schemas"),
        ({"patternProperties": {"(": True}}, ("patternProperties", "("), "without its )"),
        ({"patternProperties": {"b+": True}, "properties": {"abc": True}}, ("patternProperties", "b+"), "abc matches"),
        ({"patternProperties": {"b": True}, "required": ["b"]}, ("required",), "among properties"),
        ({"patternProperties": {"b": True}, "minProperties": 2}, ("minProperties",), "required"),
        ({"patternProperties": {str(n): True for n in range(9)}}, ("patternProperties",), "at most 8"),
        ({"type": "number", "not": {"const": 1}}, ("not",), "only exclude types"),
        ({"not": {"type": "integer"}}, ("not",), "only exclude types"),
        ({"not": {"type": "object", "required": ["a"]}}, ("not",), "only exclude types"),
        ({"not": {"type": [{}]}}, ("not", "type"), "one of string"),
        ({"not": {"$ref": "#/x"}}, ("not", "$ref"), "there is no"),
        ({"type": "integer", "not": {}}, (), "no text satisfies"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, ("oneOf", 1), "might satisfy two"),
        ({"oneOf": [{"type": "string"}, {"enum": ["a", 1]}]}, ("oneOf", 1), "might satisfy two"),
        ({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, ("oneOf", 1), "required properties differ"),
        ({"oneOf": [{"properties": {"k": {"const": 1}}, "required": ["k"]}, {"properties": {"k": {"const": 2}}}]},
         ("oneOf", 1), "might satisfy two"),
        ({"oneOf": [{"const": 1}, {"const": 1.0}]}, (), "no text satisfies"),
        ({"oneOf": [{"type": "null"}] + [{"const": n} for n in range(70)] + [{"type": "string"}]}, ("oneOf",), "64"),
        ({"allOf": [{}, {}]}, ("allOf",), "merge"),
        ({"$ref": "https://example.com/x"}, ("$ref",), "inside the schema"),
        ({"$ref": "#/$defs/none"}, ("$ref",), "there is no"),
        ({"enum": []}, ("enum",), "at least one"),
        ({"enum": [1], "minimum": 3}, ("minimum",), "beside enum"),
        ({"type": "float"}, ("type",), "string, integer"),
        ({"type": "string", "maxLength": 5000}, ("maxLength",), "1024"),
        ({"type": "string", "maxLength": True}, ("maxLength",), "integer"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, ("maxItems",), "below minItems"),
        ({"items": 5}, ("items",), "must be a schema"),
        ({"required": "x"}, ("required",), "list of names"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, (), "no text satisfies"),
        (False, (), "no text satisfies"),
        ({"properties": {"a": {"type": "string", "maxLength": 1000}}}, (), "too large"),
    ],
)  # fmt: skip
def test_what_can_not_be_honoured_is_refused_with_its_path(schema, path, words):
    with pytest.raises(GrammarError) as caught:
        Grammar.of(expression_of(schema), VOCABULARY)
    assert caught.value.path == path
    assert words in caught.value.reason


def test_small_schemas_that_stand_for_large_ones_are_refused_at_once():
    """Definitions that each name the next one twice; nesting; lists of lists."""
    doubling: Any = {f"d{n}": {"prefixItems": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}
    doubling["d40"] = True
    nested: Any = True
    for _ in range(200):
        nested = {"items": nested}
    lists: Any = {"type": "null"}
    for _ in range(6):
        lists = {"type": "array", "items": lists, "minItems": 100}
    for schema in ({"$defs": doubling, "$ref": "#/$defs/d0"}, nested, lists):
        with pytest.raises(GrammarError, match=r"more than|too large"):
            Grammar.of(expression_of(schema), VOCABULARY)


def chain(length: int, step: Any) -> Any:
    """Definitions, each of which refers to the next one."""
    definitions = {f"d{n}": step({"$ref": f"#/$defs/d{n + 1}"}) for n in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{length}": {"type": "null"}}}


@pytest.mark.parametrize(
    "schema",
    [
        chain(1500, lambda ref: ref),
        chain(300, lambda ref: {"type": "array", "items": ref}),
        chain(1500, lambda ref: {"type": "array", "items": ref}),
        {"type": "array", "prefixItems": [{"type": "null"}] * 1000, "minItems": 1000},
    ],
    ids=["references", "deep expressions", "deep schemas", "tuples"],
)
def test_what_is_nested_too_deeply_for_the_compiler_is_refused(schema):
    with pytest.raises(GrammarError, match="nested too deeply"):
        Grammar.of(expression_of(schema), VOCABULARY)


def test_a_vocabulary_without_the_tokens_is_named():
    letters = Vocabulary.of({1: b"a", 2: b"b"})
    with pytest.raises(GrammarError, match="can't spell"):
        Grammar.of(expression_of({"type": "object"}), letters)


def test_distances_are_the_fewest_tokens_of_a_text_without_free_parts():
    grammar = Grammar.of(expression_of({"const": {"name": True}}), VOCABULARY)
    assert grammar.least_tokens == 6  # {" name ": true } and the end
    assert (grammar.distance[1:] < FAR).any()
