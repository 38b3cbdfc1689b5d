"""A tokenizer's control tokens, and an encoding in which data can't become one."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from ..errors import InvalidRequestError, shorten
from .parts import Marks, TextPart


class Span(NamedTuple):
    """A place in a text that spells a control token."""

    start: int
    stop: int
    token: int


class _Twin(NamedTuple):
    """A copy of a tokenizer in which control tokens have other names, so that their usual spelling is ordinary text.

    Each name has its token's flags (blanks that it absorbs, whole words) and an unguessable number.

    Attributes:
        tokenizer: of the library `tokenizers`.
        names: by control token.
        real: the control token, by the id that its name has here.
    """

    tokenizer: Any
    names: dict[int, str]
    real: dict[int, int]


class ControlTokens:
    """The tokens that only a template or a raw prompt may put into a prompt: all special ones.

    The unknown token is not one, since ordinary text produces it, unless it is also the EOS, padding or mask token.

    Args:
        tokenizer: of transformers.
        protected: ids that are control tokens whatever the tokenizer says: the model's mask and EOS.
    """

    def __init__(self, tokenizer: Any, protected: Iterable[int] = ()):
        self._tokenizer = tokenizer
        rust: Any = getattr(tokenizer, "backend_tokenizer", None)
        self._rust = rust
        if rust is not None:  # what a tokenizer.json may say of either is not for prompts
            rust.no_truncation()
            rust.no_padding()
        self._added = dict(rust.get_added_tokens_decoder()) if rust is not None else {}
        named = {name: token for name, token in _named(tokenizer).items() if token is not None}
        unknown = named.pop("unk_token", None)
        ids = {token for token, added in self._added.items() if added.special} | set(tokenizer.all_special_ids)
        if unknown not in named.values():
            ids.discard(unknown)
        self.ids = frozenset(ids) | frozenset(protected)
        self._words = {added.content: token for token, added in self._added.items() if added.content}
        if rust is None:
            self._words = {tokenizer.convert_ids_to_tokens(token): token for token in self.ids}
        self._spellings = [word for word, token in self._words.items() if token in self.ids]
        # Of all added tokens: one that begins in data could swallow the beginning of a template's.
        ends = {end for word in self._words for end in (word[0], word[-1])}
        self.ends = frozenset(same for end in ends for same in (end, *end.upper(), *end.lower()))
        self._longest = max(map(len, self._spellings), default=0)
        self._insides = "\n".join(word[1:-1].casefold() for word in self._spellings)

    def prepare(self) -> None:
        """Build now what is otherwise built at first use."""
        if self._rust is not None:
            self._twin, self._pattern, self._any_case  # noqa: B018

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """A pattern of all added tokens, longest first, as the tokenizer searches for them."""
        return _any_of(self._words)

    @cached_property
    def _any_case(self) -> re.Pattern[str]:
        return re.compile(_any_of(self._spellings).pattern, re.IGNORECASE)

    def spans(self, text: str) -> list[Span]:
        """The places in `text` that spell control tokens."""
        found = (Span(match.start(), match.end(), self._words[match[0]]) for match in self._pattern.finditer(text))
        return [span for span in found if span.token in self.ids]

    def first(self, text: str) -> int | None:
        """The control token that `text` begins with, behind blanks; None: it begins with something else."""
        match = self._pattern.match(text.lstrip())
        token = None if match is None else self._words[match[0]]
        return token if token in self.ids else None

    def spelling(self, token: int) -> str:
        """How a control token is spelled."""
        return str(next(word for word, known in self._words.items() if known == token))

    def to_mark(self, text: str) -> frozenset[str]:
        """Characters of a piece of data without which it can't be any part of a control token that begins or ends in
        it, and, where it could be the middle of one (`<|` + data + `|>`), all of its letters."""
        core = text.strip()
        whole = {letter for letter in core if not letter.isspace()} if core and self.inside(core) else set()
        return frozenset({end for end in self.ends if end in text} | whole)

    def inside(self, text: str) -> bool:
        """Whether a control token is spelled with `text` strictly inside, in any case."""
        return len(text) <= self._longest and text.casefold() in self._insides

    def mark_spellings(self, text: str, marks: Marks) -> str:
        """`text` with only the ends of control tokens marked, in whatever case they are spelled."""

        def marked(match: re.Match[str]) -> str:
            word = match[0]
            return marks.mark(word[0], word[0]) + word[1:-1] + marks.mark(word[-1], word[-1]) * (len(word) > 1)

        return self._any_case.sub(marked, text)

    def encode_parts(self, parts: Sequence[TextPart], add_special_tokens: bool) -> list[int]:
        """Token ids of parts as one text; parts that are data produce no control token.

        Raises InvalidRequestError when that can't be had.
        """
        if not any(part.split_special_tokens for part in parts):
            return self._encode("".join(part.text for part in parts), add_special_tokens)
        chosen = [self.to_mark(part.text) if part.split_special_tokens else frozenset() for part in parts]
        marks = Marks(frozenset().union(*chosen), (part.text for part in parts))
        text = "".join(marks.mark(part.text, some) for part, some in zip(parts, chosen, strict=True))
        return self.encode_marked(text, marks, add_special_tokens)

    def encode_marked(self, text: str, marks: Marks, add_special_tokens: bool) -> list[int]:
        """Token ids of a marked text; only unmarked spellings become control tokens.

        If the plain text has just these too, the tokenizer's own ids are used.
        """
        spans, plain = self.spans(text), marks.restore(text)
        ids = self._encode(plain, add_special_tokens)
        found = [token for token in ids if token in self.ids]
        if found == [span.token for span in spans] and (plain == text or self.spans(plain) == spans):
            return ids
        if self._rust is None:
            message = "the text spells a special token, which this kind of tokenizer can't take as ordinary text"
            raise InvalidRequestError(message, field="prompts", limit="no special token in data")
        pieces, at = [], 0
        for span in spans:
            pieces += [marks.restore(text[at : span.start]), self._twin.names[span.token]]
            at = span.stop
        return self._encode_twin("".join(pieces) + marks.restore(text[at:]), add_special_tokens)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        if self._rust is not None:  # transformers' own call of it takes as long again
            return list(self._rust.encode(text, add_special_tokens=add_special_tokens).ids)
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    @cached_property
    def _twin(self) -> _Twin:
        from tokenizers import AddedToken, Tokenizer

        tokenizer = Tokenizer.from_str(self._rust.to_str())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        nonce = secrets.token_hex(16)
        control = {token: self._added[token] for token in self.ids if token in self._added}
        tokenizer.add_special_tokens(list(control.values()))
        names = {token: f"\ue000{nonce}-{token}\ue001" for token in control}
        tokenizer.add_tokens([
            AddedToken(names[token], single_word=old.single_word, lstrip=old.lstrip, rstrip=old.rstrip,
                       normalized=False, special=False)
            for token, old in control.items()
        ])  # fmt: skip
        tokenizer.encode_special_tokens = True
        real: dict[Any, int] = {tokenizer.token_to_id(name): token for token, name in names.items()}
        return _Twin(tokenizer, names, real)

    def _encode_twin(self, text: str, add_special_tokens: bool) -> list[int]:
        twin = self._twin
        encoding = twin.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        ids: list[int] = []
        for token, is_added, (start, stop) in zip(
            encoding.ids, encoding.special_tokens_mask, encoding.offsets, strict=True
        ):
            if token in twin.real:
                ids.append(twin.real[token])
            elif token in self.ids and not is_added:
                ids += self._taken_apart(text[start:stop])
            else:
                ids.append(token)
        return ids

    def _taken_apart(self, text: str) -> list[int]:
        """Ids of a text that is a control token in the model's vocabulary, encoded without that token."""
        if len(text) < 2:
            message = f"{shorten(text)} can't be encoded without becoming a special token"
            raise InvalidRequestError(message, field="prompts", value=text, limit="no special token in data")
        return [token for half in (text[:1], text[1:]) for token in self._encode_twin(half, False)]


def _named(tokenizer: Any) -> dict[str, int | None]:
    names = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    return {name: getattr(tokenizer, f"{name}_id", None) for name in names}


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
