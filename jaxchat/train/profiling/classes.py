"""The class of an operation's work: by what is in it, and by the source line that asked for it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from jaxchat.train.profiling.hlo import CONTROL, Frame, Instruction, Module

MATMUL, ATTENTION, COLLECTIVE = "matmul", "attention", "collectives"
LOOKUP, COPY, ELEMENTWISE = "lookups", "copies, layout", "elementwise, sums"
OTHER = "other programs"
CLASSES = (MATMUL, ATTENTION, ELEMENTWISE, LOOKUP, COPY, COLLECTIVE, OTHER)

PRODUCTS_FILE = "/jaxchat/model/kernels/matmul.py"
ATTENTION_FILES = re.compile(r"model/(attention|kernels/blocked|kernels/banded|kernels/native)\.py")
# Kernels of our own that are mostly products, as they are called in `kernels/native.py`
OWN_PRODUCTS = ("jaxchat_linear", "jaxchat_mlp", "jaxchat_orthogonalize")
_COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
    "collective-broadcast", "ragged-all-to-all", "send", "recv",
)  # fmt: skip
_LOOKUPS = ("gather", "scatter", "sort", "select-and-scatter")
_MOVES = (
    "copy", "copy-start", "copy-done", "transpose", "reshape", "bitcast", "bitcast-convert",
    "slice", "dynamic-slice", "dynamic-update-slice", "concatenate", "pad", "reverse", "broadcast",
)  # fmt: skip
# Neither work nor a sign of its class.
_SILENT = ("parameter", "constant", "tuple", "get-tuple-element", "iota", "fusion", "after-all")

# Kernels and operations whose instruction is not known, by name; the first that fits decides.
_BY_NAME = (
    (COLLECTIVE, r"nccl|all.?reduce|all.?gather|reduce.?scatter|all.?to.?all|collective"),
    (ATTENTION, r"fmha|sdpa|flash|attention|attn|dot_do_o|convert_dq"),
    (MATMUL, r"gemm|matmul|cublas|cutlass|nvjet|xmma|\bdot|_dot|conv\b"),
    (LOOKUP, r"gather|scatter|sort|radix"),
    (COPY, r"memcpy|memset|copy|transpose|slice|concatenate|bitcast|\bpad"),
)


@dataclass(frozen=True)
class Operation:
    """An operation that was timed."""

    name: str
    kind: str  # one of CLASSES
    flops: int = 0  # of one execution
    op_name: str = ""
    source: str = ""  # file:line


class Operations:
    """The operations of a program by the names they have in a trace."""

    def __init__(self, module: Module) -> None:
        self._module = module
        self._by_kernel = {_kernel_name(name): one for name, one in module.by_name.items()}
        entry = module.computations.get(module.entry, ())
        self._entry = {instruction.name for instruction in entry}
        self._known: dict[str, Operation] = {}

    def is_control(self, name: str) -> bool:
        """Whether it only runs others, which are timed on their own."""
        instruction = self._instruction(name)
        if instruction is None:
            return bool(re.match(r"(while|conditional|call)(\.|$)", name))
        return instruction.opcode in CONTROL and not is_collective(self._module, instruction)

    def is_in_entry(self, name: str) -> bool:
        """Whether it runs exactly once a step."""
        instruction = self._instruction(name)
        return instruction is not None and instruction.name in self._entry

    def find(self, name: str) -> Operation:
        """The operation of a name; one that is not in the HLO text is classed by its name."""
        if name not in self._known:
            instruction = self._instruction(name)
            self._known[name] = (
                describe(self._module, instruction)
                if instruction is not None
                else Operation(name, class_of_name(name))
            )
        return self._known[name]

    def _instruction(self, name: str) -> Instruction | None:
        return self._by_kernel.get(_kernel_name(name))


def describe(module: Module, instruction: Instruction) -> Operation:
    """Class, FLOPs and source of an instruction."""
    chief = _chief(module, instruction)
    frame = own_frame(chief.frames or instruction.frames)
    return Operation(
        name=instruction.name,
        kind=_class_of(module, instruction, chief),
        flops=module.flops(instruction),
        op_name=chief.op_name or instruction.op_name,
        source=f"{_short(frame.file)}:{frame.line}" if frame else "",
    )


def class_of_name(name: str) -> str:
    """The class that a kernel's or an operation's bare name suggests."""
    found = (kind for kind, pattern in _BY_NAME if re.search(pattern, name.lower()))
    return next(found, ELEMENTWISE)


def own_frame(frames: tuple[Frame, ...]) -> Frame | None:
    """The innermost frame of this project's code, else the innermost of all.

    Of a product it is the caller's.
    """
    ours = (frame for frame in frames if "/jaxchat/" in frame.file and "/optax/" not in frame.file)
    asked = (frame for frame in ours if not frame.file.endswith(PRODUCTS_FILE))
    return next(asked, frames[0] if frames else None)


def _chief(module: Module, instruction: Instruction) -> Instruction:
    """The purpose of a fusion: its matrix product, or its lookup, else its result."""
    inner = list(module.inside(instruction))
    for wanted in (_is_product, lambda i: i.opcode in _LOOKUPS):
        if found := next(filter(wanted, inner), None):
            return found
    if instruction.frames:
        return instruction
    return next((i for i in reversed(inner) if i.frames), instruction)


def _class_of(module: Module, instruction: Instruction, chief: Instruction) -> str:
    if is_collective(module, instruction):
        return COLLECTIVE
    if chief.target.startswith(OWN_PRODUCTS):
        return MATMUL
    if "fmha" in chief.target or any(ATTENTION_FILES.search(frame.file) for frame in chief.frames):
        return ATTENTION
    if _is_product(chief):
        return MATMUL
    if chief.opcode in _LOOKUPS:
        return LOOKUP
    work = {i.opcode for i in module.inside(instruction)} - set(_SILENT)
    return COPY if work and work <= set(_MOVES) else ELEMENTWISE


def _is_product(instruction: Instruction) -> bool:
    target = instruction.target
    return (
        instruction.opcode in ("dot", "convolution")
        or target.startswith(("__cublas$", "__cudnn$"))
        or "gemm" in target
    )


def is_collective(module: Module, instruction: Instruction) -> bool:
    """Whether it moves data between devices, also within an asynchronous call."""
    names = {instruction.opcode}
    if instruction.opcode.startswith("async-"):
        names |= {inner.opcode for inner in module.inside(instruction)}
    bare = {name.removesuffix("-start").removesuffix("-done") for name in names}
    return bool(bare & set(_COLLECTIVES))


def _kernel_name(name: str) -> str:
    """XLA names a GPU kernel after its instruction, with _ for what C does not allow."""
    return re.sub(r"[.\-]", "_", name)


def _short(path: str) -> str:
    """The path from the package's folder on."""
    if "/site-packages/" in path:
        return path.rpartition("/site-packages/")[2]
    _, found, inside = path.rpartition("/jaxchat/")
    return f"jaxchat/{inside}" if found else path
