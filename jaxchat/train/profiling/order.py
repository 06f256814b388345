"""Finds the instructions of kernels that ran in command buffers, by the order of both.

Such a kernel has its own name alone: XLA's for a fusion, which same fusions of all layers share, or
a library's, which says nothing of the HLO. But an execution runs its instructions in the order of
the HLO's schedule. So the n-th product of a library is the n-th call of cuBLAS, where there are as
many of both; else the kernels keep their names, and the FLOPs of their products are unknown.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from jaxchat.train.profiling.hlo import Instruction, Module
from jaxchat.train.profiling.trace import Event

FUSION, PRODUCT, FORWARD, BACKWARD = "fusion", "product", "attention", "attention's gradient"
# What instructions run which of a library's kernels; the first that fits. Of the gradient of
# attention there are three, each once.
_KERNELS = (
    (FORWARD, r"sdpa\w*fprop|fmha\w*fprop"),
    (BACKWARD, r"sdpa\w*bprop|fmha\w*bprop"),
    (BACKWARD, r"dot_do_o"),
    (BACKWARD, r"convert_dq"),
    (PRODUCT, r"nvjet|gemm|cutlass|xmma"),
)


class _UnknownOrder(Exception):
    """What runs is decided while it runs."""


def in_order(events: Sequence[Event], module: Module) -> list[Event]:
    """The events, in the order of launches, with the instructions of kernels in command buffers."""
    events = list(events)
    try:
        program = list(_executed(module, module.entry))
    except _UnknownOrder:
        return events
    wanted: dict[str, list[Instruction]] = defaultdict(list)
    apart = {e.op for e in events if not e.in_buffer}  # launched by itself: the trace names it
    for instruction in program:
        if instruction.name not in apart:
            wanted[_family(instruction)].append(instruction)
    fusions = {_symbol(i.name) for i in wanted[FUSION]}
    found: dict[tuple[int | None, str, str], list[int]] = defaultdict(list)
    for index, event in enumerate(events):
        if event.in_buffer and event.module in (module.name, ""):
            family, part = _family_of_kernel(event.kernel, fusions)
            found[event.run, family, part].append(index)
    for (_, family, _), indices in found.items():
        if not _fits([events[index] for index in indices], wanted[family], family):
            continue
        for index, instruction in zip(indices, itertools.cycle(wanted[family]), strict=False):
            events[index] = replace(events[index], op=instruction.name)
    return events


def _executed(module: Module, computation: str) -> Iterator[Instruction]:
    """The instructions that one execution of a computation runs, in order; loops are repeated."""
    for instruction in module.computations.get(computation, ()):
        if instruction.opcode not in ("while", "call", "conditional"):
            yield instruction
            continue
        trips = instruction.trips if instruction.opcode == "while" else 1
        if trips is None or not instruction.body:
            raise _UnknownOrder
        for _ in range(trips):
            yield from _executed(module, instruction.body)


def _family(instruction: Instruction) -> str:
    target = instruction.target
    if instruction.opcode == "fusion":
        return FUSION
    if "fmha" in target:
        return BACKWARD if "Backward" in target else FORWARD
    return PRODUCT if target.startswith("__cublas$") else ""


def _family_of_kernel(kernel: str, fusions: set[str]) -> tuple[str, str]:
    """The family, and which of the kernels of one instruction it is."""
    if _symbol(kernel) in fusions:
        return FUSION, ""
    found = ((family, part) for family, part in _KERNELS if re.search(part, kernel))
    return next(found, ("", ""))


def _fits(kernels: list[Event], instructions: list[Instruction], family: str) -> bool:
    """Whether each instruction ran once, or equally often."""
    if not family or not instructions or len(kernels) % len(instructions):
        return False
    if family != FUSION:
        return True
    pairs = zip(kernels, itertools.cycle(instructions), strict=False)
    return all(_stem(event.kernel) == _stem(instruction.name) for event, instruction in pairs)


def _symbol(name: str) -> str:
    """XLA names a kernel after an instruction, with _ for what C does not allow."""
    return re.sub(r"[.\-]", "_", name)


def _stem(name: str) -> str:
    """What an instruction is called without its number: same fusions share a kernel."""
    return re.sub(r"(_\d+)+$", "", _symbol(name))
