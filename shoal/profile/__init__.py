"""`shoal profile`: measures on a model and its user's data how deep a shared prefix may be reused."""
