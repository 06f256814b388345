"""What the kernels of a GPU's or TPU's program do, counted in its scheduled HLO text.

Bytes of an elementwise kernel are those of its result and its operands, by their shapes. "Naive"
takes whole arrays; "fine" takes of an operand that is only sliced or looked up what is taken, and
of an update in place what is written. What stands in a loop counts as often as the loop runs.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxchat.train.compiled.parts import part_of
from jaxchat.train.profiling.classes import is_collective
from jaxchat.train.profiling.hlo import Instruction, Module, parse
from jaxchat.train.profiling.tpu import splash_products

PRODUCT, ATTENTION, COLLECTIVE, ELEMENTWISE = "product", "attention", "collective", "elementwise"
# No kernels: names of what exists, and what only runs others.
_NO_KERNEL = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "opt-barrier", "add-dependency",
}  # fmt: skip
_TAKING = ("slice", "dynamic-slice", "gather")
_UPDATE = "dynamic-update-slice"
_IN_PLACE = (_UPDATE, "scatter")  # of their first operand at most what they change is read
# Of a TPU, which has a memory of its own beside the large one, from and to which copies run beside
# kernels: what only says where an array lies. In it no byte counts.
_NO_CALL = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound")


@dataclass(frozen=True)
class Kernel:
    """One kernel, or call of a library, and how often a step runs it; the rest is of one run."""

    instruction: Instruction
    kind: str  # PRODUCT, ATTENTION, COLLECTIVE or ELEMENTWISE
    part: str  # of the model: see `parts`
    times: int
    flops: int
    naive: int  # bytes
    fine: int

    @property
    def original(self) -> str:
        """The name of what it is a copy of, which XLA runs again to save memory; else its own."""
        return re.sub(r"(\.remat\d*)+$", "", self.instruction.name)


@dataclass(frozen=True)
class Collective:
    """One collective operation and the kernels that may run meanwhile, by the schedule."""

    name: str
    size: int  # bytes of its result
    times: int
    kernels: int  # between its start and its end
    flops: int  # of these
    bytes: int  # fine, of these


@dataclass(frozen=True)
class Counts:
    """A program's totals of one step on one device. FLOPs and bytes are numbers, not rates."""

    products: int  # executed
    product_flops: int
    fp8_products: int
    fp8_flops: int  # contained in product_flops
    recomputed: int
    recomputed_flops: int
    attention_calls: int
    attention_flops: int
    attention_bytes: int  # of its operands and results
    naive: int  # bytes of elementwise kernels
    fine: int
    kernels: int  # elementwise
    # Bytes of a pass that a card makes of its own: cuBLASLt, which it chooses for the head, has no
    # tanh, and a compiler without a device puts that into its own product. In no other number
    tanh: int
    parts: dict[str, tuple[int, int]]  # of the model: elementwise kernels, fine bytes
    collectives: tuple[Collective, ...]
    launches: int = 0  # all kernels and calls but collectives
    naive_parts: dict[str, int] = field(default_factory=dict)  # naive bytes

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        named = {
            name: {"kernels": n, "bytes": size, "naive_bytes": self.naive_parts.get(name, size)}
            for name, (n, size) in self.parts.items()
        }
        whole = {name: value for name, value in vars(self).items() if name != "naive_parts"}
        return {**whole, "parts": named, "collectives": [vars(one) for one in self.collectives]}


def count(text: str) -> Counts:
    """Reads a program's text and counts. Raises ValueError when it is no HLO module."""
    module = parse(text)
    return counted(module, list(kernels(module)))


def counted(module: Module, found: Sequence[Kernel]) -> Counts:
    """The totals of a module's kernels."""
    products = [kernel for kernel in found if kernel.kind == PRODUCT]
    fp8 = [kernel for kernel in products if _takes_fp8(module, kernel.instruction)]
    again = list(_again(products))
    attention = [kernel for kernel in found if kernel.kind == ATTENTION]
    elementwise = [kernel for kernel in found if kernel.kind == ELEMENTWISE]
    parts: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in elementwise:
        parts[kernel.part].append(kernel)
    return Counts(
        products=_runs(products),
        product_flops=_total(products, "flops"),
        fp8_products=_runs(fp8),
        fp8_flops=_total(fp8, "flops"),
        recomputed=_runs(again),
        recomputed_flops=_total(again, "flops"),
        attention_calls=_runs(attention),
        attention_flops=_total(attention, "flops"),
        attention_bytes=_total(attention, "naive"),
        naive=_total(elementwise, "naive"),
        fine=_total(elementwise, "fine"),
        kernels=_runs(elementwise),
        tanh=sum(
            2 * one.times * one.instruction.size for one in products if _has_tanh(module, one)
        ),
        parts={name: (_runs(of), _total(of, "fine")) for name, of in sorted(parts.items())},
        collectives=tuple(collectives(module)),
        launches=_runs(found),
        naive_parts={name: _total(of, "naive") for name, of in sorted(parts.items())},
    )


def _again(found: Sequence[Kernel]) -> Iterator[Kernel]:
    """All but the first of each: a copy whose original is gone was only moved."""
    seen: set[str] = set()
    for kernel in found:
        if kernel.original in seen:
            yield kernel
        seen.add(kernel.original)


def _runs(found: Sequence[Kernel]) -> int:
    return sum(kernel.times for kernel in found)


def _total(found: Sequence[Kernel], name: str) -> int:
    return sum(kernel.times * int(getattr(kernel, name)) for kernel in found)


def kernels(module: Module) -> Iterator[Kernel]:
    """All kernels in the order of the schedule, those of a loop's body once."""
    for times, instruction in _scheduled(module, module.entry, 1):
        if _is_kernel(instruction) and not is_collective(module, instruction):
            yield _kernel(module, instruction, times)


def collectives(module: Module) -> Iterator[Collective]:
    """The collective operations, with what the schedule puts between their starts and ends."""
    order = list(_scheduled(module, module.entry, 1))
    ends = {
        operand: index
        for index, (_, one) in enumerate(order)
        if one.opcode.endswith("-done")
        for operand in one.operands
    }
    for index, (times, one) in enumerate(order):
        if not is_collective(module, one) or one.opcode.endswith(("-done", "-update")):
            continue
        inside = [
            _kernel(module, between, runs // times)
            for runs, between in order[index : ends.get(one.name, index)]
            if _is_kernel(between) and not is_collective(module, between)
        ]
        yield Collective(
            one.name, _collective_size(module, one), times,
            _runs(inside), _total(inside, "flops"), _total(inside, "fine"),
        )  # fmt: skip


def _collective_size(module: Module, start: Instruction) -> int:
    """Bytes of its result: of a start, which holds its operands too, what they do not explain."""
    operands = sum(module.by_name[name].size for name in start.operands if name in module.by_name)
    holds_operands = start.opcode.endswith("-start") and start.size > operands
    return start.size - operands if holds_operands else start.size


def _scheduled(module: Module, computation: str, times: int) -> Iterator[tuple[int, Instruction]]:
    """(times, instruction) of all that is executed, in order, loops and calls entered."""
    for one in module.computations.get(computation, ()):
        if one.opcode == "while":
            yield from _scheduled(module, one.body, times * (module.trips(one) or 1))
        elif one.opcode in ("call", "conditional", "async-start") and not is_collective(
            module, one
        ):
            for name in one.called:
                yield from _scheduled(module, name, times)
        else:
            yield times, one


def _is_kernel(one: Instruction) -> bool:
    if one.opcode in _NO_KERNEL or one.target in _NO_CALL:
        return False
    beside = one.opcode in ("copy-start", "slice-start") and any(one.spaces)
    return not beside and not one.opcode.endswith(("-done", "-update"))


def _kernel(module: Module, one: Instruction, times: int) -> Kernel:
    flops = module.flops(one)
    kind = PRODUCT if flops or one.target.startswith("__cublas") else ELEMENTWISE
    naive, fine = _bytes(module, one)
    if "fmha" in one.target or splash_products(one.name):
        kind = ATTENTION
        naive = fine = naive - _scratch(one)
    return Kernel(one, kind, part_of(module, one), times, flops, naive, fine)


def _has_tanh(module: Module, kernel: Kernel) -> bool:
    opcodes = {one.opcode for one in module.inside(kernel.instruction)}
    return "tanh" in opcodes and "convolution" not in opcodes  # a TPU has no such library


def _takes_fp8(module: Module, one: Instruction) -> bool:
    operands = (module.by_name[name] for i in module.inside(one) for name in i.operands
                if i.opcode in ("dot", "custom-call") and name in module.by_name)  # fmt: skip
    return any(kind.startswith("f8") for operand in operands for kind in operand.types)


def _bytes(module: Module, one: Instruction) -> tuple[int, int]:
    """(naive, fine) bytes that a kernel reads and writes."""
    operands = [module.by_name[name] for name in one.operands if name in module.by_name]
    body = next((module.computations[name] for name in one.called
                 if name in module.computations), ())  # fmt: skip
    result = _written(module, body[-1], fine=False) if _is_start(one) and body else one.far
    naive = result + sum(operand.far for operand in operands)
    if body and one.opcode.startswith("fusion"):
        read = sum(_read(module, body, i) for i in body if i.opcode == "parameter")
        return naive, read + _written(module, body[-1], fine=True)
    if one.opcode in _TAKING:
        return naive, one.far + (one.size if operands and operands[0].far else 0)
    if one.opcode == _UPDATE and len(operands) > 1:
        return naive, operands[1].far + (operands[1].size if one.far else 0)
    return naive, naive


def _scratch(one: Instruction) -> int:
    """Bytes of a library call's workspace, which it has on a card only."""
    arrays = zip(one.types, one.shapes, strict=True)
    return sum(math.prod(shape) for kind, shape in arrays if kind == "u8")


def _is_start(one: Instruction) -> bool:
    return one.opcode.endswith("-start")  # whose result also holds its operands


def _read(module: Module, body: Sequence[Instruction], parameter: Instruction) -> int:
    """Bytes of a fusion's operand that it reads: what it takes, where it only takes parts."""
    taken = 0
    for user, name in _users(body, parameter.name):
        if user.operands[0] != name or user.opcode not in (*_TAKING, *_IN_PLACE):
            return parameter.far
        if user.opcode in _TAKING:
            taken += user.size
        elif _adds(module, user):
            taken += module.by_name[user.operands[-1]].size
    return min(parameter.far, taken)


def _adds(module: Module, scatter: Instruction) -> bool:
    """Whether a scatter combines its updates with what is there, and does not replace it."""
    body = next((module.computations.get(name, ()) for name in scatter.called), ())
    return bool(body) and body[-1].opcode != "parameter"


def _users(body: Sequence[Instruction], name: str) -> Iterator[tuple[Instruction, str]]:
    for user in body:
        if name in user.operands:
            if user.opcode == "bitcast":
                yield from _users(body, user.name)
            else:
                yield user, name


def _written(module: Module, root: Instruction, *, fine: bool) -> int:
    """Bytes that a fusion writes: of an update in place, what is new."""
    by_name = module.by_name
    while root.opcode == "bitcast":
        root = by_name[root.operands[0]]
    if root.opcode == "tuple":
        return sum(_written(module, by_name[name], fine=fine) for name in root.operands)
    if fine and root.opcode == _UPDATE:
        return min(root.far, by_name[root.operands[1]].size)
    if fine and root.opcode == "scatter":
        return min(root.far, by_name[root.operands[-1]].size)
    return root.far
