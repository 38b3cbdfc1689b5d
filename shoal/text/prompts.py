"""What the causal base is asked, so that its answers become training rows: about documents, and about anything."""

from __future__ import annotations

import numpy as np

from .asks import ASSISTANT, USER, Asker

ABOUT_DOCUMENT = (
    "What is this text about? Answer in one sentence.",
    "Summarize the text above in two sentences.",
    "What is the main point of the text?",
    "Give a short answer: what does the text describe?",
    "Explain the text in simple words.",
    "List the main points of the text.",
    "Who would want to read this text, and why?",
    "What can a reader learn from this text?",
    "Write a title for this text.",
    "Which things does the text mention?",
    "Rewrite the first part of the text in your own words.",
    "What does the text say about {word}?",
    "What is {word}, according to the text?",
    "Why does the text mention {word}?",
    "Explain {word} as the text does, in one or two sentences.",
)

ABOUT_ANYTHING = (
    "Write a short story about {topic}.",
    "Write a news report about {topic}.",
    "Write an essay about {topic}.",
    "Tell me about {topic}.",
    "Explain {topic} to a beginner.",
    "What should everyone know about {topic}?",
    "Give three tips about {topic}.",
    "Describe {topic} in detail.",
    "Write a letter to a friend about {topic}.",
    "Write a conversation between two people about {topic}.",
    "What is the history of {topic}?",
    "Continue this text: {opening}",
    "Continue this text: {opening}",
    "Continue in the same style: {opening}",
    "What happens next? {opening}",
)

TOPICS = (
    "a bridge, a lighthouse, a lost dog, a village school, a new hospital, an old library, baking bread, bees, birds, "
    "books, boats, building a house, caring for plants, children and games, city buses, classical music, clouds, coal "
    "mines, coffee, cooking for guests, dancing, dentists, desert animals, dinosaurs, doctors, dreams, earthquakes, "
    "elections, engines, factories, family dinners, farming, fashion, fire fighters, first love, fishing, folk songs, "
    "football, forests, friendship, gardens, geometry, glass, going to the theatre, gold, good manners, grandparents, "
    "growing old, health, honesty, horses, hotels, how airplanes fly, how rain forms, how to save money, jazz, judges "
    "and courts, kitchens, kings and queens, learning a language, learning to swim, light and colour, looking for "
    "work, mail and letters, maps, markets, marriage, mathematics, medicine, moving to another town, mountains, "
    "museums, neighbours, newspapers, night trains, ocean currents, painters, parks, philosophy, photography, "
    "planets, poetry, police work, prisons, radio, railways, religion, repairing a bicycle, rivers, roads, sailing, "
    "school exams, science, sheep, ships, shops, sleep, snow, soldiers coming home, spring, stars, steel, storms, "
    "summer holidays, taxes, tea, teachers, telephones, tennis, the body, the brain, the church, the countryside, the "
    "economy, the heart, the law, the moon, the police, the sea, the sun, the university, the weather, time, towns, "
    "toys, travel by train, trees, truth, universities, vegetables, volcanoes, war and peace, water, wheat, wild "
    "animals, wine, winter, witnesses, wood, work, writing a book"
).split(", ")

DOCUMENT_PROMPT = 384
FREE_PROMPT = 64
LEAST_PROMPT = 16


def about_document(random: np.random.Generator, asker: Asker) -> list[int]:
    """A prompt of exactly DOCUMENT_PROMPT tokens: a piece of text and a question about it."""
    documents = asker.documents
    longest = documents.piece(random, DOCUMENT_PROMPT)
    words = [w for w in documents.tokenizer.decode(longest[:200]).split() if len(w) > 5 and w.isalpha()]
    word = words[random.integers(len(words))] if words else "it"
    question = ABOUT_DOCUMENT[random.integers(len(ABOUT_DOCUMENT))].format(word=word)
    behind = asker.encode(f"\n\n{question}{ASSISTANT}")
    head = asker.encode(USER)
    return [*head, *longest[: DOCUMENT_PROMPT - len(head) - len(behind)], *behind]


def about_anything(random: np.random.Generator, asker: Asker) -> list[int]:
    """A prompt of at most FREE_PROMPT tokens and at least LEAST_PROMPT."""
    template = ABOUT_ANYTHING[random.integers(len(ABOUT_ANYTHING))]
    opening = asker.documents.tokenizer.decode(asker.documents.piece(random, int(random.integers(16, 34)), "prose"))
    topic = TOPICS[random.integers(len(TOPICS))]
    question = template.format(topic=topic, opening=" ".join(opening.split()))
    ids = asker.encode(USER + question + ASSISTANT)
    return ids if len(ids) <= FREE_PROMPT else about_anything(random, asker)
