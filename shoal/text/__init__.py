"""`text`: a small DLM of natural text, made from a causal model by a recipe that anyone can run."""
