"""Texts, conversations and problems on disk, and the rows of tokens that are made of them."""
