"""The pipeline of processes."""
