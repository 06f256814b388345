"""Writes files as torch.save does, and others like them, without torch."""

import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import numpy as np

TYPES = {
    "float32": "FloatStorage", "float64": "DoubleStorage", "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage", "int64": "LongStorage",
}  # fmt: skip


class _Storage:
    def __init__(self, key, dtype, count):
        self.id = ("storage", _class(TYPES[dtype]), key, "cpu", count)


class Tensor:
    """A tensor that pickles as torch's do."""

    def __init__(self, key, array, **changed):
        stride = tuple(n // array.itemsize for n in np.ascontiguousarray(array).strides)
        fields = {"offset": 0, "size": array.shape, "stride": stride, "count": array.size}
        fields |= changed
        self.storage = _Storage(str(key), str(array.dtype), fields["count"])
        self.arguments = (fields["offset"], fields["size"], fields["stride"], False, OrderedDict())

    def __reduce__(self):
        return _fake("torch._utils", "_rebuild_tensor_v2"), (self.storage, *self.arguments)


class _Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.id if isinstance(value, _Storage) else None


def _class(name):
    return _fake("torch", name, kind="class")


def _fake(module, name, kind="function"):
    """Something that pickles as `module name`, although there is no such module."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:end]), ModuleType(".".join(parts[:end])))
    made = type(name, (), {}) if kind == "class" else (lambda *arguments: None)
    made.__module__, made.__qualname__, made.__name__ = module, name, name
    if not hasattr(sys.modules[module], name):
        setattr(sys.modules[module], name, made)
    return getattr(sys.modules[module], name)


def dumps(value) -> bytes:
    file = io.BytesIO()
    _Pickler(file, 2).dump(value)
    return file.getvalue()


def save(path: Path, tensors: dict, *, root="model", data=None, compress=False, extra=()) -> Path:
    """Writes tensors; `data` is put in place of the pickle, `extra` are (name, bytes)."""
    made = OrderedDict((name, Tensor(key, a)) for key, (name, a) in enumerate(tensors.items()))
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(f"{root}/data.pkl", dumps(made) if data is None else data)
        archive.writestr(f"{root}/byteorder", "little")
        for key, array in enumerate(tensors.values()):
            archive.writestr(f"{root}/data/{key}", np.ascontiguousarray(array).tobytes())
        archive.writestr(f"{root}/version", "3\n")
        for name, content in extra:
            archive.writestr(name, content)
    return path
