"""Text: tokenizers, text that grows, chat markers."""
