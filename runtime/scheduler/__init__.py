"""Which requests run, with which memory, and what they reuse."""
