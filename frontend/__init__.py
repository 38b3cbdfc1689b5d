"""The frontend DSL (not implemented yet)."""
