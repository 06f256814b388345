"""The transformer: pure functions over plain nested dicts of arrays.

`gpt` has the forward pass, `attention` and `kv_cache` what it stands on, `backend` the devices.
"""
