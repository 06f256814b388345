"""Random arrays and distances by NumPy.

JAX would compile a program for each operation and shape, 20 ms each.
"""

from typing import Any

import numpy as np


def normal(rng: np.random.Generator | int, *shape: int) -> np.ndarray:
    """Standard normal numbers in float32; `rng` may be a seed."""
    return np.random.default_rng(rng).standard_normal(shape, np.float32)


def norm(x: Any) -> float:
    """The Euclidean norm of all elements."""
    return float(np.linalg.norm(np.asarray(x, np.float64)))


def distance(a: Any, b: Any) -> float:
    """The norm of a difference."""
    return norm(np.asarray(a, np.float64) - np.asarray(b, np.float64))
