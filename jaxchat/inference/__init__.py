"""Inference: `engine` turns requests into completions, many at once.

`request` has what goes in and comes out, `sequence` the host's state of one completion and its tool
calls, `jitted` the compiled functions.
"""
