"""One request: what was asked, its state, its outputs."""
