"""`python -m shoal`: the same as the command `shoal`."""

from .cli import app

app(prog_name="python -m shoal")
