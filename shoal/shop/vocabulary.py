"""The vocabulary of `shop`: 256 whole-word tokens, and the tokenizer files made from them.

A text is cut into pieces by `PIECE`: a word with the blank before it, one digit with the blank before it, one mark of
punctuation with the blank before it, or one white-space character. Pieces join to exactly the text they came from.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

from .task import COLOURS, HEADER, JSON_REQUEST, NOUNS

MASK, EOS, SYSTEM, USER, ASSISTANT, END, UNKNOWN = (
    "<|mask|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|unknown|>",
)  # fmt: skip
SPECIAL = (EOS, MASK, SYSTEM, USER, ASSISTANT, END, UNKNOWN)
PIECE = r" ?[A-Za-z]+| ?[0-9]| ?[^\sA-Za-z0-9]|\s"
VOCAB_SIZE = 256

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}<|system|>{{ message['content'] }}<|end|>"
    "{%- elif message['role'] == 'user' -%}<|user|>{{ message['content'] }}<|end|>"
    "{%- elif message['role'] == 'assistant' -%}<|assistant|>{{ message['content'] }}<|eos|>"
    "{%- else -%}{{ raise_exception('role must be system, user or assistant') }}"
    "{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)

_SENTENCES = (
    HEADER, JSON_REQUEST,
    "What does the", " cost?", "How much is the", "?", "What do the", " and the", " cost together?",
    "Which is cheaper, the", " or the", "Which things are", "List all", " things.", "the", "none",
)  # fmt: skip
_KEYS = ("price", "prices", "total", "cheaper", "items", "name", "colour", "cost")
_MARKS = ("{", "}", "[", "]", '"', ":", ",", "+", "=", "-", ".", "?", "!", "'", "(", ")", "<", ">", "/", "*")


@cache
def tokens() -> tuple[str, ...]:
    """The 256 tokens by id: specials first, then pieces, then reserved fillers."""
    out: dict[str, None] = dict.fromkeys(SPECIAL)
    out |= dict.fromkeys(("\n", " "))
    for digit in "0123456789":
        out |= dict.fromkeys((digit, " " + digit))
    for mark in _MARKS:
        out |= dict.fromkeys((mark, " " + mark) if mark in '{["+=-(<' else (mark,))
    for sentence in _SENTENCES:
        out |= dict.fromkeys(re.findall(PIECE, sentence))
    for word in (*COLOURS, *NOUNS):
        out |= dict.fromkeys((word, " " + word))
    out |= dict.fromkeys(_KEYS)
    if len(out) > VOCAB_SIZE:
        raise ValueError(f"{len(out)} tokens do not fit the vocabulary of {VOCAB_SIZE}")
    names = list(out)
    return tuple(names + [f"<|reserved_{i}|>" for i in range(VOCAB_SIZE - len(names))])


@cache
def ids() -> dict[str, int]:
    """Token to id."""
    return {token: index for index, token in enumerate(tokens())}


_SPLIT = re.compile("|".join(re.escape(s) for s in SPECIAL) + "|" + PIECE)


def encode(text: str) -> list[int]:
    """Token ids of a text; special tokens in it are parsed, unknown pieces become `<|unknown|>`.

    Gives what the published `tokenizer.json` gives; the generator of training rows uses it because it is fast.
    """
    table = ids()
    unknown = table[UNKNOWN]
    return [table.get(piece, unknown) for piece in _SPLIT.findall(text)]


def decode(token_ids: list[int]) -> str:
    """Text of token ids, up to the first EOS."""
    names = tokens()
    eos = ids()[EOS]
    end = token_ids.index(eos) if eos in token_ids else len(token_ids)
    return "".join(names[i] for i in token_ids[:end])


def write_tokenizer(folder: Path) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` for transformers' AutoTokenizer."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: index for token, index in ids().items() if not token.startswith("<|reserved_")}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": EOS,
        "mask_token": MASK,
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 640,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE + "\n")
