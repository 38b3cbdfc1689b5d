"""Forwards on a CPU."""
