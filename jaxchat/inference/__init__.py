"""Inference: `engine` turns requests into completions, many at once.

`request` has what goes in and comes out, `row` the host's side of one completion and its tool
calls, `device` the compiled functions.
"""
