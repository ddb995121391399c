"""One encoder writes a text as latent vectors that several frozen language models read."""

__version__ = "0.1.0"
