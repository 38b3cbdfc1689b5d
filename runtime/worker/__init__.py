"""Forwards: canvases, pools, samplers, on a CPU or a GPU."""
