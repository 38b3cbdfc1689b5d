"""shoal: a serving runtime for diffusion language models with bidirectional prefix caching."""

__version__ = "0.1.0"
