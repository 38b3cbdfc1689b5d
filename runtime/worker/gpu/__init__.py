"""Forwards on a GPU."""
