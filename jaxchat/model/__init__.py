"""The transformer: pure functions over plain nested dicts of arrays.

`gpt` has the forward pass, `cache` what decoding remembers, `attention` the ways to compute it.
"""
