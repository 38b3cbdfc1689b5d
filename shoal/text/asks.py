"""Rows that ask about what stands in them: facts strewn over a document, quotation, gaps, and few-shot classification.

Every row is exactly as long as asked for. Its answers are masked; the last one's canvas takes the rest of the row,
filled up with END, as serving has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from tokenizers import Tokenizer

from .corpus import END
from .masks import canvas_mask
from .words import ANSWERS, FACTS, NAMES, PLACES, QUESTIONS, STATEMENTS, THINGS, TOPICS, VALUES

ANSWER_WEIGHT = 1.5
FILL_WEIGHT = 0.05
_CONTEXT_RATE = 0.1
_CONTEXT_SHARE = 0.15

USER = "<|im_start|>user\n"
ASSISTANT = "<|im_end|>\n<|im_start|>assistant\n"
CLOSE = "<|im_end|>"


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens [length], where they are masked, and the weight of each masked one."""

    tokens: np.ndarray
    masked: np.ndarray
    weight: np.ndarray


@dataclass(slots=True)
class Draft:
    """A row while it is being written."""

    tokens: list[int] = field(default_factory=list)
    answers: list[tuple[int, int]] = field(default_factory=list)

    def add(self, ids: list[int], answer: bool = False) -> None:
        """Append tokens; `answer`: they are to be predicted."""
        if answer:
            self.answers.append((len(self.tokens), len(self.tokens) + len(ids)))
        self.tokens += ids


class Documents:
    """Pieces of training text.

    Args:
        rows: [n, length] token ids.
        labels: a package's name for each row, or ''.
    """

    def __init__(self, rows: np.ndarray, labels: list[str], tokenizer: Tokenizer):
        self.rows = rows
        self.tokenizer = tokenizer
        ends = [tokenizer.token_to_id(text) for text in (".", "?", "!")]
        self._ends = np.array([i for i in ends if i is not None])
        self._of_topic: dict[str, np.ndarray] = {}
        topics = np.array([TOPICS.get(label, "") for label in labels])
        for topic in sorted(set(TOPICS.values())):
            found = np.nonzero(topics == topic)[0]
            if len(found) >= 4:
                self._of_topic[topic] = found

    @property
    def topics(self) -> list[str]:
        """Topics of which there are pieces."""
        return list(self._of_topic)

    def piece(self, random: np.random.Generator, length: int, topic: str | None = None) -> list[int]:
        """`length` consecutive tokens of a row (rows are joined where one is too short)."""
        rows = self._of_topic[topic] if topic else None
        tokens: list[int] = []
        while len(tokens) < length:
            index = random.integers(len(self.rows)) if rows is None else rows[random.integers(len(rows))]
            row = self.rows[index]
            need = length - len(tokens)
            start = random.integers(len(row) - need + 1) if need < len(row) else 0
            tokens += row[start : start + need].tolist()
        return tokens

    def sentences(self, tokens: list[int]) -> list[tuple[int, int]]:
        """Begin and end of each whole sentence of 8 to 48 tokens."""
        stops = np.nonzero(np.isin(tokens, self._ends))[0] + 1
        pairs = zip(stops[:-1].tolist(), stops[1:].tolist(), strict=True)
        return [(begin, end) for begin, end in pairs if 8 <= end - begin <= 48]


class Asker:
    """Makes rows about pieces of `documents`."""

    def __init__(self, documents: Documents):
        self.documents = documents
        self.tokenizer = documents.tokenizer
        self.kinds: dict[str, Callable[[np.random.Generator, int], Draft]] = {
            "lookup": self.lookup, "quote": self.quote, "gap": self.gap, "classify": self.classify,
        }  # fmt: skip
        self._encode = cache(lambda text: tuple(self.tokenizer.encode(text, add_special_tokens=False).ids))

    def row(self, random: np.random.Generator, kind: str, length: int) -> Row:
        """A row of a kind in `kinds`."""
        return masked(random, self.kinds[kind](random, length), length)

    def encode(self, text: str) -> list[int]:
        """Token ids of a short text."""
        return list(self._encode(text))

    def lookup(self, random: np.random.Generator, length: int) -> Draft:
        """Facts strewn over a piece of text; statements and questions about some of them behind it."""
        count = int(random.integers(1, 13))
        facts = _facts(random, count)
        template = FACTS[random.integers(len(FACTS))]
        written = [self.encode(template.format(**fact)) for fact in facts]
        asked = random.permutation(count)[: 1 if random.random() < 0.5 else int(random.integers(1, min(count, 6) + 1))]
        chat = random.random() < 0.4
        behind, turns = Draft(), [facts[i] for i in asked]
        if random.random() < 0.4 and not chat:
            statement = STATEMENTS[random.integers(len(STATEMENTS))]
            for fact in turns:
                behind.add(self.encode(statement.format(**fact)))
                behind.add(self.encode(f" {fact['value']}"), answer=True)
                behind.add(self.encode("."))
            canvas = 0
        else:
            question, answer = QUESTIONS[random.integers(len(QUESTIONS))], ANSWERS[random.integers(len(ANSWERS))]
            self._turns(behind, [(question.format(**f), answer.format(**f)) for f in turns], chat)
            canvas = _canvas(random)
        if not chat and random.random() < 0.3:  # text between the last fact and the question
            middle = Draft(self.documents.piece(random, int(random.integers(16, length // 3))))
            behind = _joined(middle, behind)
        head = self.encode(USER) if chat else []
        room = length - len(head) - len(behind.tokens) - canvas - sum(map(len, written))
        text = self.documents.piece(random, max(0, room))
        cuts = [0, *sorted(random.integers(0, len(text) + 1, count).tolist()), len(text)]
        draft = Draft(head)
        for fact_ids, begin, end in zip(written, cuts, cuts[1:], strict=False):
            draft.add(text[begin:end] + fact_ids)
        draft.add(text[cuts[-2] :])
        return _joined(draft, behind)

    def quote(self, random: np.random.Generator, length: int) -> Draft:
        """Sentences of a piece of text, asked for by their first words."""

        def ask(tokens: list[int], begin: int, end: int) -> tuple[str, str]:
            start = self.tokenizer.decode(tokens[begin : begin + int(random.integers(3, 6))]).strip()
            return f'Quote the sentence that begins with "{start}".', self.tokenizer.decode(tokens[begin:end]).strip()

        return self._about_sentences(random, length, ask, most=3, tokens_each=100)

    def gap(self, random: np.random.Generator, length: int) -> Draft:
        """Sentences of a piece of text with a word left out, which is asked for."""

        def ask(tokens: list[int], begin: int, end: int) -> tuple[str, str] | None:
            words = self.tokenizer.decode(tokens[begin:end]).strip().split(" ")
            long = [i for i, word in enumerate(words) if i and len(word) > 4 and word.isalpha()]
            if not long:
                return None
            gap = long[random.integers(len(long))]
            sentence = " ".join([*words[:gap], "____", *words[gap + 1 :]])
            return f"Which word is missing here? {sentence}", words[gap]

        return self._about_sentences(random, length, ask, most=5, tokens_each=75)

    def classify(self, random: np.random.Generator, length: int) -> Draft:
        """Short texts with their topics, or with arbitrary words that stand for topics; the last one is asked for."""
        count = int(random.integers(2, 5))
        topics = [str(t) for t in random.choice(self.documents.topics, count, replace=False)]
        names = topics if random.random() < 0.6 else [VALUES[i] for i in random.permutation(len(VALUES))[:count]]
        before, between = (("Text:", "\nTopic:"), ("Input:", "\nLabel:"), ("", " =>"))[random.integers(3)]
        size = int(random.integers(20, 56))
        draft, last = Draft(), 0
        while True:
            topic = int(random.integers(count))
            text = self.documents.piece(random, size, topics[topic])
            text = self.encode(before + " " + " ".join(self.tokenizer.decode(text).split())) + self.encode(between)
            label = self.encode(f" {names[topic]}")
            if draft.tokens and len(draft.tokens) + len(text) + len(label) + 12 > length:
                break
            if draft.tokens:
                draft.add(self.encode("\n\n"))
            draft.add(text)
            last = len(label)
            draft.add(label, answer=random.random() < 0.6)
        if not draft.answers or draft.answers[-1][1] != len(draft.tokens):  # the last label is always asked for
            draft.answers.append((len(draft.tokens) - last, len(draft.tokens)))
        return draft

    def _about_sentences(
        self, random: np.random.Generator, length: int,
        ask: Callable[[list[int], int, int], tuple[str, str] | None], most: int, tokens_each: int,
    ) -> Draft:  # fmt: skip
        count = int(random.integers(1, most + 1)) if random.random() < 0.6 else 1
        chat, canvas = random.random() < 0.5, _canvas(random)
        text = self.documents.piece(random, length)
        sure = count * tokens_each + canvas + 8  # what stands behind this is surely kept
        sentences = [sentence for sentence in self.documents.sentences(text) if sentence[0] >= sure]
        turns: list[tuple[str, str]] = []
        for i in random.permutation(len(sentences)):
            if len(turns) < count and (turn := ask(text, *sentences[i])):
                turns.append(turn)
        if not turns:
            return self.lookup(random, length)
        head, behind = Draft(self.encode(USER) if chat else []), Draft()
        self._turns(behind, turns, chat)
        head.add(text[len(head.tokens) + len(behind.tokens) + canvas :])
        return _joined(head, behind)

    def _turns(self, draft: Draft, turns: list[tuple[str, str]], chat: bool) -> None:
        """Questions and answers, as a conversation whose first message is the draft so far, or in plain text."""
        for number, (question, answer) in enumerate(turns):
            if chat:
                draft.add(self.encode("\n\n" + question if not number else "\n" + USER + question))
                draft.add(self.encode(ASSISTANT))
                draft.add(self.encode(answer) + self.encode(CLOSE), answer=True)
            else:
                draft.add(self.encode(f"\n\nQuestion: {question}\nAnswer:"))
                draft.add(self.encode(" " + answer), answer=True)


def masked(random: np.random.Generator, draft: Draft, length: int) -> Row:
    """The draft with its answers masked, and the rest of the row made the last answer's canvas.

    A draft that is too long is cut at its beginning.
    """
    surplus = max(0, len(draft.tokens) - length)
    end = len(draft.tokens) - surplus
    tokens = np.full(length, END, np.int64)
    tokens[:end] = draft.tokens[surplus:]
    mask, weight = np.zeros(length, bool), np.zeros(length)
    if random.random() < _CONTEXT_SHARE:
        mask = random.random(length) < _CONTEXT_RATE
        weight[mask] = 1.0
    spans = [(max(1, b - surplus), e - surplus) for b, e in draft.answers if e - surplus > 1]
    last = spans[-1] if spans else (end, end)
    canvas = last[1] == end
    for begin, stop in spans:
        if (begin, stop) == last:
            stop = length if canvas else stop
        elif random.random() < 0.2:
            continue
        mask[begin:stop], factor = canvas_mask(random, stop - begin)
        weight[begin:stop] = ANSWER_WEIGHT * factor
    if canvas:
        weight[end + 1 :] = FILL_WEIGHT
    else:
        mask[end:] = False
    mask[0] = False
    return Row(tokens, mask, weight)


def _facts(random: np.random.Generator, count: int) -> list[dict[str, str]]:
    """Facts about different people, of one thing half of the time."""
    names = [NAMES[i] for i in random.permutation(len(NAMES))[:count]]
    kind = random.random()
    things = [THINGS[random.integers(len(THINGS))]] * count
    if kind < 0.5:
        things = [THINGS[i] for i in random.integers(len(THINGS), size=count)]
    pool = random.random()
    if pool < 0.6:
        values = [VALUES[i] for i in random.permutation(len(VALUES))[:count]]
    elif pool < 0.8:
        values = [PLACES[i] for i in random.permutation(len(PLACES))[:count]]
    else:
        values = [str(random.integers(10, 10 ** int(random.integers(2, 5)))) for _ in range(count)]
    return [{"name": n, "thing": t, "value": v} for n, t, v in zip(names, things, values, strict=True)]


def _canvas(random: np.random.Generator) -> int:
    """Room behind the last answer."""
    return int(2 ** random.uniform(1, 6))


def _joined(one: Draft, two: Draft) -> Draft:
    offset = len(one.tokens)
    return Draft(one.tokens + two.tokens, one.answers + [(begin + offset, end + offset) for begin, end in two.answers])
