"""Questions to `text` whose prefix another request shares: five tasks, four wordings each, at a given prefix ratio.

A prompt is a shared prefix and a part of its own, which is OWN tokens long at every ratio: so the distance between
prefix and canvas does not change with the ratio. The donor has the same prefix, another part of its own, and asks
something else. Nothing of it occurs in the training: documents are held out, names and words are others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from shoal.text.asks import ASSISTANT, USER, Documents
from shoal.text.corpus import held_out, label_of
from shoal.text.evaluate import LOOKUP_NAMES, LOOKUP_WORDS

OWN = 128
FACTS = 6
CANVAS = {"look-up": 16, "quotation": 16, "missing word": 16, "few-shot topic": 8, "summary": 128}
"""Canvas tokens of each task."""
TEMPLATES = 4

LOOK_UP = (
    ("The password of {name} is {word}.", "What is the password of {name}?"),
    ("{name} chose the word {word}.", "Which word did {name} choose?"),
    ("The nickname of {name} was {word}.", "What was the nickname of {name}?"),
    ("{name} wrote down: {word}.", "What did {name} write down?"),
)
QUOTATION = (
    'Quote the sentence that begins with "{start}".',
    'Which sentence of the text starts with "{start}"? Repeat it.',
    'The text says "{start}". How does this sentence go on?',
    'Complete the sentence from the text: "{start}"',
)
MISSING_WORD = (
    "Which word is missing here? {sentence}",
    "One word of this sentence was left out: {sentence} Which word was it?",
    "Fill the gap with the word from the text: {sentence}",
    "The text has this sentence without a gap: {sentence} Which word fills it?",
)
FEW_SHOT = (("Text: ", "\nTopic:"), ("Input: ", "\nLabel:"), ("Passage: ", "\nSubject:"), ("", " =>"))
SUMMARY = (
    "What is this text about? Answer in one sentence.",
    "What is the main point of the text?",
    "Summarize the text above in two sentences.",
    "What can a reader learn from this text?",
)


@dataclass(frozen=True)
class Question:
    """Prompt and donor (token ids) that share their first tokens, the answer ('' where there is none), the wording."""

    prompt: tuple[int, ...]
    donor: tuple[int, ...]
    answer: str
    template: int

    def is_right(self, text: str) -> bool:
        """Whether a text contains the answer, ignoring case and spaces."""
        return " ".join(self.answer.lower().split()) in " ".join(text.lower().split())


def prefix_length(task: str, ratio: float) -> int:
    """Shared tokens so that they are `ratio` of prefix, own part and canvas."""
    return round(ratio / (1 - ratio) * (OWN + CANVAS[task]))


class Questions:
    """Makes questions from held-out documents."""

    def __init__(self, documents: Documents):
        self._documents = documents
        self._tokenizer: Tokenizer = documents.tokenizer
        self._tasks: dict[str, Callable[[np.random.Generator, int, int], Question | None]] = {
            "look-up": self._look_up, "quotation": self._quotation, "missing word": self._missing_word,
            "few-shot topic": self._few_shot, "summary": self._summary,
        }  # fmt: skip

    def make(self, task: str, ratio: float, count: int) -> list[Question]:
        """`count` questions of a task, the four wordings in turns; the same whatever else is measured."""
        out: list[Question] = []
        number = 0
        while len(out) < count:
            random = np.random.default_rng([len(task), round(1000 * ratio), number])
            number += 1
            made = self._tasks[task](random, len(out) % TEMPLATES, prefix_length(task, ratio))
            if made is not None:
                out.append(made)
        return out

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _look_up(self, random: np.random.Generator, template: int, prefix: int) -> Question:
        names, words = random.permutation(LOOKUP_NAMES)[:FACTS], random.permutation(LOOKUP_WORDS)[:FACTS]
        fact, question = LOOK_UP[template]
        facts = [self._ids(" " + fact.format(name=n, word=w)) for n, w in zip(names, words, strict=True)]
        head = self._ids(USER)
        room = prefix - len(head) - sum(map(len, facts))
        text = self._documents.piece(random, room)
        cuts = [0, *sorted(random.integers(0, room + 1, FACTS).tolist())]
        shared = head
        for ids, begin, end in zip(facts, cuts, cuts[1:], strict=False):
            shared = shared + text[begin:end] + ids
        shared = shared + text[cuts[-1] :]
        return self._asked(
            random, shared, question.format(name=names[0]), question.format(name=names[1]), str(words[0]), template
        )

    def _quotation(self, random: np.random.Generator, template: int, prefix: int) -> Question | None:
        shared, sentences = self._text(random, prefix)
        if len(sentences) < 2:
            return None
        (start, rest), (other, _) = ((" ".join(s[:4]), " ".join(s[4:7])) for s in sentences[:2])
        wording = QUOTATION[template]
        return self._asked(random, shared, wording.format(start=start), wording.format(start=other), rest, template)

    def _missing_word(self, random: np.random.Generator, template: int, prefix: int) -> Question | None:
        shared, sentences = self._text(random, prefix)
        holed = [hole for hole in (_with_hole(random, sentence) for sentence in sentences) if hole]
        if len(holed) < 2:
            return None
        wording = MISSING_WORD[template]
        return self._asked(
            random, shared, wording.format(sentence=holed[0][0]), wording.format(sentence=holed[1][0]), holed[0][1],
            template,
        )  # fmt: skip

    def _summary(self, random: np.random.Generator, template: int, prefix: int) -> Question:
        shared = [*self._ids(USER), *self._documents.piece(random, prefix)][:prefix]
        return self._asked(random, shared, SUMMARY[template], SUMMARY[(template + 1) % TEMPLATES], "", template)

    def _few_shot(self, random: np.random.Generator, template: int, prefix: int) -> Question:
        topics = [str(topic) for topic in random.choice(self._documents.topics, 3, replace=False)]
        before, between = FEW_SHOT[template]

        def example(topic: str, size: int) -> list[int]:
            text = " ".join(self._tokenizer.decode(self._documents.piece(random, size, topic)).split())
            return self._ids(before + text + between)

        shared: list[int] = []
        while len(shared) < prefix:
            topic = topics[int(random.integers(3))]
            shared += example(topic, int(random.integers(24, 40))) + self._ids(f" {topic}\n\n")
        asked, other = topics[int(random.integers(3))], topics[int(random.integers(3))]
        # An own part begins in the middle of an example: the shared examples are cut where the prefix ends.
        parts = []
        for topic in (asked, other):
            behind = example(topic, 40)
            rest = example(topics[0], OWN)[-max(0, OWN - len(behind) - 8) :] + self._ids(f" {topics[0]}\n\n")
            parts.append((rest + behind)[-OWN:])
        return Question((*shared[:prefix], *parts[0]), (*shared[:prefix], *parts[1]), asked, template)

    def _text(self, random: np.random.Generator, prefix: int) -> tuple[list[int], list[list[str]]]:
        """A shared prefix of text alone, and whole sentences of at least eight words in it, shuffled."""
        head = self._ids(USER)
        text = self._documents.piece(random, prefix - len(head))
        sentences = [self._tokenizer.decode(text[b:e]).split() for b, e in self._documents.sentences(text)]
        long = [sentence for sentence in sentences if len(sentence) >= 8]
        return head + text, [long[i] for i in random.permutation(len(long))]

    def _asked(
        self, random: np.random.Generator, shared: list[int], question: str, other: str, answer: str, template: int
    ) -> Question:
        """Prompt and donor end in a text of their own and a question, OWN tokens in all (more for a long question)."""
        parts = []
        for words in (question, other):
            behind = self._ids(f"\n\n{words}{ASSISTANT}")
            parts.append((*self._documents.piece(random, max(8, OWN - len(behind))), *behind))
        return Question((*shared, *parts[0]), (*shared, *parts[1]), answer, template)


def _with_hole(random: np.random.Generator, words: list[str]) -> tuple[str, str] | None:
    """A sentence with a word left out, and the word; None without a long word."""
    long = [i for i, word in enumerate(words) if i and len(word) > 4 and word.isalpha()]
    if not long:
        return None
    gap = long[random.integers(len(long))]
    return " ".join([*words[:gap], "____", *words[gap + 1 :]]), words[gap]


def held_out_questions(model: Path, data: Path) -> Questions:
    """Questions about the 256 held-out documents of the folder `data`, in the tokens of the folder `model`."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    documents, names = held_out(data / "held.npz", 1741, 256)
    return Questions(Documents(documents.astype(np.uint16), [label_of(name) for name in names], tokenizer))
