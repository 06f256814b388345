"""Muon and AdamW in plain NumPy, float64, one matrix at a time: the oracle of the tests.

Written from the papers (see jaxchat/optim/muon.py) and nanochat's description of its combination.
Matrices are [out, in], as there; the tests transpose at the border.
"""

import math
from dataclasses import dataclass, field

import numpy as np

QUINTIC = [(3.4445, -4.7750, 2.0315)] * 5
# Table of arXiv 2505.16932 for five iterations, safety factor 0.02 and cushion 2.
EXPRESS = [
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]


def odd_polynomials(g: np.ndarray, coefficients: list, divisor: float) -> np.ndarray:
    """Applies p(s) = a s + b s^3 + c s^5 to the singular values, by decomposing."""
    u, s, vt = np.linalg.svd(g / divisor, full_matrices=False)
    for a, b, c in coefficients:
        s = a * s + b * s**3 + c * s**5
    return (u * s) @ vt


@dataclass
class PlainMuon:
    """Muon as first published: momentum, Newton-Schulz, shape factor. `w` is [out, in]."""

    w: np.ndarray
    buffer: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.w = self.w.astype(np.float64)
        self.buffer = np.zeros_like(self.w)

    def direction(self, grad: np.ndarray, momentum: float) -> np.ndarray:
        """Nesterov: the new mean, seen from the gradient."""
        grad = grad.astype(np.float64)
        self.buffer = momentum * self.buffer + (1 - momentum) * grad
        return (1 - momentum) * grad + momentum * self.buffer

    def shape_factor(self) -> float:
        out, into = self.w.shape
        return math.sqrt(max(1.0, out / into))

    def step(self, grad: np.ndarray, rate: float, momentum: float, decay: float) -> None:
        g = self.direction(grad, momentum)
        update = odd_polynomials(g, QUINTIC, np.linalg.norm(g) + 1e-7)
        self.w = self.w - rate * self.shape_factor() * (update + decay * self.w)


@dataclass
class ModernMuon(PlainMuon):
    """With row equilibration, Polar Express, renormalisation, NorMuon and cautious decay."""

    beta2: float = 0.9
    second: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        out, into = self.w.shape
        self.tall = out >= into  # then one number for each row, else for each column
        self.second = np.zeros(out if self.tall else into)

    def step(self, grad: np.ndarray, rate: float, momentum: float, decay: float) -> None:
        g = self.direction(grad, momentum)
        out, into = g.shape
        # MuonEq: every row (output neuron) gets the root mean square of the rows' norms
        row_norms = np.linalg.norm(g, axis=1)
        wanted = np.linalg.norm(g) / math.sqrt(out)
        g = g * (wanted / np.maximum(row_norms, 1e-6))[:, None]
        g = odd_polynomials(g, EXPRESS, 1.01 * np.linalg.norm(g) + 1e-6)
        # Muon+: the Frobenius norm of a semi-orthogonal matrix
        g = g * (math.sqrt(min(out, into)) / max(np.linalg.norm(g), 1e-6))
        g = self.normalize_neurons(g)
        agrees = g * self.w >= 0
        factor = rate * self.shape_factor()
        self.w = self.w - factor * g - factor * decay * np.where(agrees, self.w, 0.0)

    def normalize_neurons(self, g: np.ndarray) -> np.ndarray:
        """NorMuon: each neuron over its running RMS, then back to the norm of before."""
        before = np.linalg.norm(g)
        mean = np.mean(g**2, axis=1 if self.tall else 0)
        self.second = self.beta2 * self.second + (1 - self.beta2) * mean
        scale = 1 / np.sqrt(np.maximum(self.second, 1e-10))
        scaled = g * (scale[:, None] if self.tall else scale[None, :])
        return scaled * before / max(np.linalg.norm(scaled), 1e-10)


@dataclass
class AdamW:
    """arXiv 1711.05101, with the bias corrections of Adam; decay is multiplied by the rate."""

    w: np.ndarray
    beta1: float
    beta2: float
    decay: float
    steps: int = 0

    def __post_init__(self) -> None:
        self.w = self.w.astype(np.float64)
        self.m, self.v = np.zeros_like(self.w), np.zeros_like(self.w)

    def step(self, grad: np.ndarray, rate: float) -> None:
        grad = grad.astype(np.float64)
        self.steps += 1
        self.w = self.w - rate * self.decay * self.w
        self.m = self.beta1 * self.m + (1 - self.beta1) * grad
        self.v = self.beta2 * self.v + (1 - self.beta2) * grad**2
        m = self.m / (1 - self.beta1**self.steps)
        v = self.v / (1 - self.beta2**self.steps)
        self.w = self.w - rate * m / (np.sqrt(v) + 1e-10)
