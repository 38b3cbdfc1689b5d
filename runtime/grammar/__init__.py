# Structured output: schemas and regular expressions as automata over bytes, and what they allow of a vocabulary.
