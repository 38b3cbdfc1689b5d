"""`shoal demo`: the bundled model answers questions about price lists in every cache mode, with the cost of each."""
