"""Optimised HLO text (`compiled.as_text()`) read back: instructions, source lines, FLOPs.

Only what a profile needs is read, and what is not understood is left out, never an error: the text
is XLA's own and changes with it. An instruction names a stack frame (`stack_frame_id=5`) of the
tables at the top.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from jaxchat.train.profiling import tpu

Shape = tuple[int, ...]

_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
# Type, sizes, and the memory it lies in where that is not the device's large one, 0
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([0-9,<=]*)\](?:\{[^}S]*S\((\d+)\)\})?")
_BITS = re.compile(r"[a-z]+(\d+)")  # f32, bf16, f8e4m3fn
_OPCODE = re.compile(r" ([a-z][a-z0-9\-]*)\(")
_BRACKETED = re.compile(r"\([^()\[\]{}]*\)|\[[^()\[\]{}]*\]|\{[^()\[\]{}]*\}")
_COMMENT = re.compile(r"/\*.*?\*/")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|branch_computations|called_computations)="
    r"(\{[^}]*\}|%?[\w.\-]+)"
)
_CONTINUED = re.compile(r'(\{(?=\n")|"(?=\n\}))\n')  # an attribute over several lines
_ROW = re.compile(r"^(\d+) (?:\"(.*)\"|\{(.*)\})$")
_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")


@dataclass(frozen=True)
class Frame:
    """A line of source that led to an instruction."""

    file: str
    line: int
    function: str = ""


Stack = tuple[Frame, ...]  # innermost first


@dataclass(frozen=True)
class Instruction:
    """One line of HLO."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # of the result; several for a tuple
    operands: tuple[str, ...]
    attributes: str  # all that follows the operands, as it stands
    types: tuple[str, ...] = ()  # of the result's elements, such as bf16
    spaces: tuple[int, ...] = ()  # memories that its arrays lie in; 1 is a TPU core's own
    called: tuple[str, ...] = ()  # computations: of a fusion, the loop's body, ...
    op_name: str = ""  # jax's path of name scopes, such as jit(step)/h_0/attn/c_q/dot_general
    frames: Stack = ()

    @property
    def target(self) -> str:
        """The target of a custom-call, such as __cublas$gemm; else ""."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def trips(self) -> int | None:
        """How often a while loop runs its body, as XLA says; None: see `Module.trips`."""
        found = re.search(r'"known_trip_count":\{"n":"(\d+)"', self.attributes)
        return int(found[1]) if found else None

    @property
    def body(self) -> str:
        """The computation that a while loop or a call runs; else ""."""
        found = re.search(r"\b(?:body|to_apply|calls)=%?([\w.\-]+)", self.attributes)
        return found[1] if found else ""

    @property
    def size(self) -> int:
        """Bytes of the result."""
        return sum(self.sizes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each of its arrays."""
        elements = map(math.prod, self.shapes)
        return tuple(map(int.__mul__, elements, map(_width, self.types)))

    @property
    def far(self) -> int:
        """Bytes of the result that lie in the device's large memory, where reading takes time."""
        return sum(size for size, space in zip(self.sizes, self.spaces, strict=True) if not space)


@dataclass(frozen=True)
class Module:
    """The instructions of a program by computation, and by name (names are unique in a module)."""

    name: str
    entry: str
    computations: Mapping[str, tuple[Instruction, ...]]
    by_name: Mapping[str, Instruction] = field(repr=False)

    def inside(self, instruction: Instruction) -> Iterator[Instruction]:
        """The instruction, and all in the computations it calls, and those call."""
        yield instruction
        for name in instruction.called:
            for inner in self.computations.get(name, ()):
                yield from self.inside(inner)

    def flops(self, instruction: Instruction) -> int:
        """Multiplications and additions of the matrix products that one execution makes.

        Those of loops and calls are not counted: their body's instructions are executed, and
        timed, on their own.
        """
        if instruction.opcode in CONTROL:
            return 0
        return sum(self._product_flops(inner) for inner in self.inside(instruction))

    def trips(self, loop: Instruction) -> int | None:
        """How often a while loop runs its body; None where that is decided while it runs.

        A TPU's compiler does not say, so there it is what JAX's counters, from 0, are compared to.
        """
        if loop.trips is not None:
            return loop.trips
        named = re.search(r"\bcondition=%?([\w.\-]+)", loop.attributes)
        body = self.computations.get(named[1], ()) if named else ()
        if not body or body[-1].opcode != "compare" or "direction=LT" not in body[-1].attributes:
            return None
        limit = self.by_name.get(body[-1].operands[-1])
        return int(limit.operands[0]) if limit and limit.opcode == "constant" else None

    def _product_flops(self, instruction: Instruction) -> int:
        if instruction.opcode == "dot":
            contracted = _numbers(r"lhs_contracting_dims=\{([0-9,]*)\}", instruction.attributes)
        elif instruction.target.startswith("__cublas$"):
            pattern = r'"lhs_contracting_dimensions":\s*\[([0-9", ]*)\]'
            contracted = _numbers(pattern, instruction.attributes)
        elif "fmha" in instruction.target:
            return self._attention_flops(instruction)
        elif instruction.opcode == "convolution":
            left, kernel = (self._operand_shape(instruction, n) for n in (0, 1))
            return tpu.convolution_flops(
                left, kernel, instruction.shapes[0], instruction.attributes
            )
        elif tpu.splash_products(instruction.name):
            blocks, q = (self._operand_shape(instruction, n) for n in (tpu.BLOCKS, tpu.QUERIES))
            return tpu.attention_flops(instruction.name, blocks, q)
        else:
            return 0
        left = self._operand_shape(instruction, 0)
        inner = math.prod(left[axis] for axis in contracted if axis < len(left))
        return 2 * math.prod(instruction.shapes[0]) * inner

    def _attention_flops(self, instruction: Instruction) -> int:
        """cudnn's fused attention: 2 products forward, 5 backward, of the scores that are seen."""
        dimensions = _numbers(r'"dimensions":\s*\[([0-9", ]*)\]', instruction.attributes)
        if len(dimensions) != 4:  # [B,H,T,S]
            return 0
        batch, heads, queries, keys = dimensions
        scores = queries * keys
        if re.search(r'"mask_type":\s*"\w*CAUSAL', instruction.attributes):
            window = re.search(r'"sliding_window_length":\s*"?(\d+)', instruction.attributes)
            limit = int(window[1]) if window and int(window[1]) else keys
            scores = sum(min(query + 1, limit) for query in range(queries))
        size = (self._operand_shape(instruction, 0) or (0,))[-1]
        products = 5 if "Backward" in instruction.target else 2
        return 2 * products * batch * heads * scores * size

    def _operand_shape(self, instruction: Instruction, index: int) -> Shape:
        operand = instruction.operands[index] if index < len(instruction.operands) else ""
        source = self.by_name.get(operand)
        return source.shapes[0] if source and source.shapes else ()


NO_MODULE = Module("", "", {}, {})  # of a trace without HLO text
# These run other instructions, which have times of their own.
CONTROL = ("while", "conditional", "call", "async-start", "async-done", "async-update")


def parse(text: str) -> Module:
    """Reads a module. Raises ValueError when the text is no HLO module."""
    if not text.startswith("HloModule "):
        raise ValueError("this is no HLO text: it does not begin with HloModule")
    lines = _CONTINUED.sub(r"\1", text).splitlines()
    stacks = _stack_frames(lines)
    computations: dict[str, tuple[Instruction, ...]] = {}
    by_name: dict[str, Instruction] = {}
    entry, current = "", ""
    found: list[Instruction] = []
    for line in lines:
        if line.startswith("}"):
            computations[current] = tuple(found)
            found = []
        elif match := _HEAD.match(line):
            current = match[1]
            entry = current if line.startswith("ENTRY") else entry
        elif current and (match := _INSTRUCTION.match(line)):
            instruction = _instruction(match[1], match[2], stacks)
            if instruction is not None:
                found.append(instruction)
                by_name[instruction.name] = instruction
    name = lines[0].removeprefix("HloModule ").split(",")[0].strip()
    return Module(name, entry, computations, by_name)


def _instruction(name: str, rest: str, stacks: Mapping[int, Stack]) -> Instruction | None:
    rest = _COMMENT.sub("", rest)
    opcode = _OPCODE.search(rest, _closing(rest, 0) if rest.startswith("(") else 0)
    if opcode is None:
        return None
    start = opcode.end() - 1
    stop = _closing(rest, start)
    attributes = rest[stop:]
    op_name = re.search(r'op_name="((?:[^"\\]|\\.)*)"', attributes)
    frame = re.search(r"stack_frame_id=(\d+)", attributes)
    arrays = _ARRAY.findall(rest[: opcode.start()])
    return Instruction(
        name=name,
        opcode=opcode[1],
        shapes=tuple(_shape(numbers) for _, numbers, _ in arrays),
        types=tuple(kind for kind, _, _ in arrays),
        spaces=tuple(int(space or 0) for _, _, space in arrays),
        operands=tuple(_operands(rest[start + 1 : stop - 1])),
        attributes=attributes,
        called=tuple(_called(attributes)),
        op_name=op_name[1] if op_name else "",
        frames=stacks.get(int(frame[1]), ()) if frame else (),
    )


def _width(kind: str) -> int:
    """Bytes of an element; pred takes one."""
    bits = _BITS.match(kind)
    return max(1, int(bits[1]) // 8) if bits else int(kind == "pred")


def _closing(text: str, start: int) -> int:
    """The index after the parenthesis that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index + 1
    return len(text)


def _shape(numbers: str) -> Shape:
    return tuple(int(n.lstrip("<=")) for n in numbers.split(",") if n)


def _operands(text: str) -> Iterator[str]:
    """Names, whether or not their types stand before them."""
    while text != (text := _BRACKETED.sub("", text)):
        pass  # innermost brackets first
    for operand in text.split(","):
        if words := operand.split():
            yield words[-1].lstrip("%")


def _called(attributes: str) -> Iterator[str]:
    for names in _CALLED.findall(attributes):
        for name in names.strip("{}").split(","):
            yield name.strip().lstrip("%")


def _numbers(pattern: str, text: str) -> list[int]:
    found = re.search(pattern, text)
    return [int(n) for n in re.findall(r"\d+", found[1])] if found else []


def _stack_frames(lines: list[str]) -> dict[int, Stack]:
    """Number -> frames, innermost first, from the four tables at the top."""
    tables: dict[str, dict[int, str]] = {name: {} for name in _TABLES}
    current: dict[int, str] | None = None
    for line in lines[1:]:
        if line in tables:
            current = tables[line]
        elif current is not None and (row := _ROW.match(line)):
            current[int(row[1])] = row[2] if row[2] is not None else row[3]
        elif line:
            break  # the first computation: the tables are over
    files, functions, locations, stack = (tables[name] for name in _TABLES)

    def number(fields: str, key: str) -> int:
        found = re.search(rf"\b{key}=(\d+)", fields)
        return int(found[1]) if found else 0

    @functools.cache
    def frame(location: int) -> Frame:
        fields = locations.get(location, "")
        function = functions.get(number(fields, "function_name_id"), "")
        file = files.get(number(fields, "file_name_id"), "")
        return Frame(file, number(fields, "line"), function)

    # jax 0.10 prints the parent's number plus one, so that the first frame is its own parent.
    first = min(stack, default=0)
    excess = int(bool(stack) and number(stack[first], "parent_frame_id") == first)
    result: dict[int, Stack] = {}
    for index, fields in sorted(stack.items()):  # a parent comes before its children
        outer = result.get(number(fields, "parent_frame_id") - excess, ())
        result[index] = (frame(number(fields, "file_location_id")), *outer)
    return result
