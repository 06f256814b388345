"""Estimated memory of a training step on a device, term by term, before anything is compiled.

Pure arithmetic, without jax. Sizes are bytes of one device. The arguments of a step (state and
batch) are exact: partitions are those of `parallel.mesh` and `optim.zero`, and a test compares. The
rest follows from what `model.gpt`, `model.attention` and `model.loss` save for the backward pass,
and from reading the buffers that XLA 0.10.2 assigns on a CPU: numbers that only the compiler can
explain are marked "measured" below. On a CPU a peak is within 15% of XLA's own. On a GPU the terms
are those that XLA cannot do without, and within 7% of its plans for an H100. Both are tests
(tests/config/test_memory.py). A TPU's were compared twice: 1% and 23% more than XLA's. Large
products of bfloat16 over float32 activations (`compute.products`) are not distinguished: such a
step takes about as much, and less, by a quarter at most, where the optimizer is its peak.

Axes: T time, D width, H query heads, G key/value heads, K head size, F = 4D hidden, V vocabulary,
L layers. Meshes are (data, fsdp, tensor).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from jaxchat.config.derive import VALUE_GATE_CHANNELS, count_params, value_layers, windows
from jaxchat.config.schema import MeshConfig, ModelConfig, OptimConfig

WIDE = 4  # bytes of float32: weights, gradients, optimizer state and logits
# Tokens whose logits are held at once: see `model.loss`
CHUNK_ROWS = {"cpu": 1_024, "gpu": 8_192, "tpu": 8_192}
CARDS = (8, 12, 24, 80, 141)  # GB of the graphics cards that `--plan` has a line for
MIN_BLOCK, MAX_BLOCKS = 64, 8  # of queries: see `model.attention`
MARGIN = 0.08  # of a card, for the compiler's own needs, fragments and other processes

# Measured, on a CPU.
# Copies of a device's share of the matrices, in float32, while they are made orthogonal, by the
# bytes Muon computes in and whether the chain has what needs the matrices again (decay, NorMuon).
MUON_COPIES = {(4, False): 2.8, (4, True): 3.5, (2, False): 1.8, (2, True): 2.8}
ADAM_COPIES = 1.0  # of a device's share of the other parameters, meanwhile
LOGITS_COPIES = 2  # of logits, tanh and exp, in float32; the gradient takes the place of one


@dataclass(frozen=True)
class Mesh:
    """Devices along each axis."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    @property
    def size(self) -> int:
        """All devices."""
        return self.shards * self.tensor

    @property
    def shards(self) -> int:
        """How many ways the rows of a batch are split."""
        return self.data * self.fsdp


def mesh_of(config: MeshConfig, devices: int) -> Mesh:
    """The mesh of `devices`: `data` takes what the other axes leave, as in `parallel.mesh`."""
    rest = config.fsdp * config.tensor
    return Mesh(config.data or max(1, devices // rest), config.fsdp, config.tensor)


@dataclass(frozen=True)
class Step:
    """A training step and its devices; rows are those of one device and micro-batch."""

    model: ModelConfig
    optim: OptimConfig
    rows: int
    accumulation: int = 1
    mesh: Mesh = Mesh()
    platform: str = "gpu"  # of CHUNK_ROWS
    compute_bytes: int = 2  # of an activation: 2 in bf16, 4 in fp32
    fp8: bool = False  # the blocks' products
    lean_relu2: bool = False  # its input is not kept
    fused: bool = False  # norms and losses in `model.backend.Compute`'s form of the fewest bytes
    chunk_rows: int = 0  # tokens whose logits are held at once; 0: CHUNK_ROWS


@dataclass(frozen=True)
class Memory:
    """Bytes of one device. `peak` is what it must have.

    A step is given `parameters`, `optimizer` and `batch`. It is fullest either when the loss is
    computed, with `weights`, `gradients`, `activations` and `logits`, or with `update`, in the
    optimizer.
    """

    parameters: int  # as they are stored
    optimizer: int
    batch: int
    weights: int  # copies of parameters that are computed with
    gradients: int  # those that exist at the end of the forward pass
    activations: int  # what the backward pass needs
    logits: int
    update: int  # gradients and what the optimizer works on

    @property
    def arguments(self) -> int:
        """The arguments of a step."""
        return self.parameters + self.optimizer + self.batch

    @property
    def loss(self) -> int:
        """Memory beside the arguments when the loss is computed."""
        return self.weights + self.gradients + self.activations + self.logits

    @property
    def peak(self) -> int:
        """The most at any time."""
        return self.arguments + max(self.loss, self.update)


def predict(step: Step) -> Memory:
    """The memory of one device."""
    groups, mesh = tuple(_groups(step.model)), step.mesh
    stacks = [group for group in groups if group.muon]
    tables = [group for group in groups if not group.muon]
    scalars = WIDE * count_params(step.model)["scalars"]
    whole = sum(group.gathered(mesh) for group in groups)
    share = sum(group.share(mesh) for group in stacks)
    rest = sum(group.share(mesh) for group in tables)
    neurons = sum(group.neurons(mesh) for group in stacks) if step.optim.normuon else 0
    copies = MUON_COPIES[step.compute_bytes, step.optim.weight_decay > 0]
    time = step.model.sequence_len
    return Memory(
        parameters=scalars + sum(group.stored(mesh) for group in groups),
        optimizer=2 * scalars + share + neurons + 2 * rest,
        batch=2 * WIDE * step.accumulation * step.rows * (time + 1),  # tokens and mask
        weights=_weights(step, groups, stacks),
        gradients=_gradients(step, groups),
        activations=_activations(step),
        logits=_logits(step),
        update=int(copies * share + ADAM_COPIES * rest) + (whole if mesh.shards > 1 else 0),
    )


def largest_rows(step: Step, device_rows: int, limit: float, *, most: int | None = None) -> int:
    """The most rows of a micro-batch with which a device stays within `limit` bytes; 0 for none.

    They divide `device_rows`, those of one device in a step, as `train.loop.plan_batch` wants it:
    accumulation makes up for the rest, so the batch of a step stays as it is.
    """
    for rows in range(device_rows if most is None else most, 0, -1):
        if device_rows % rows == 0 and predict(with_rows(step, rows, device_rows)).peak <= limit:
            return rows
    return 0


def fewer_rows(rows: int, device_rows: int) -> int:
    """Half the rows of a micro-batch, or the next fewer that divide `device_rows`; 0 for none."""
    return next((n for n in range(rows // 2, 0, -1) if device_rows % n == 0), 0)


def with_rows(step: Step, rows: int, device_rows: int) -> Step:
    """The same step in micro-batches of `rows` a device."""
    return replace(step, rows=rows, accumulation=device_rows // rows)


@dataclass(frozen=True)
class _Group:
    """Arrays that are cut alike: a stack of matrices, or tables.

    `fsdp` and `tensor` are the dimension that the axis cuts, if it divides (`parallel.mesh.RULES`).
    """

    count: int
    shape: tuple[int, int]
    fsdp: int | None
    tensor: int | None
    muon: bool

    def _ways(self, dim: int | None, devices: int) -> int:
        return devices if dim is not None and self.shape[dim] % devices == 0 else 1

    def _bytes(self, count: int) -> int:
        return WIDE * count * self.shape[0] * self.shape[1]

    def gathered(self, mesh: Mesh) -> int:
        """As a step computes with them: cut over the tensor axis only."""
        return self._bytes(self.count) // self._ways(self.tensor, mesh.tensor)

    def stored(self, mesh: Mesh) -> int:
        """As they are stored between steps."""
        return self.gathered(mesh) // self._ways(self.fsdp, mesh.fsdp)

    def matrices(self, mesh: Mesh) -> float:
        """Matrices of a stack that a device works on: it is filled up to divide."""
        filled = math.ceil(self.count / mesh.size) * mesh.size
        return filled / mesh.shards / self._ways(self.tensor, mesh.tensor)

    def share(self, mesh: Mesh) -> int:
        """What a device works on in the optimizer: the size of one number of its state each."""
        if self.muon:
            return self._bytes(1) * int(self.matrices(mesh))
        gathered = self.gathered(mesh)
        if self._ways(self.fsdp, mesh.fsdp) > 1:
            return gathered // max(mesh.fsdp, self._ways(self.fsdp, mesh.shards))
        cut = self.tensor if self._ways(self.tensor, mesh.tensor) > 1 else None
        free = any(d != cut and size % mesh.shards == 0 for d, size in enumerate(self.shape))
        return gathered // (mesh.shards if free else 1)

    def neurons(self, mesh: Mesh) -> int:
        """NorMuon's second moment: a number a neuron, along the longer side."""
        return WIDE * int(self.matrices(mesh)) * max(self.shape)


def _groups(model: ModelConfig) -> Iterator[_Group]:
    """All parameters but the scalars, as `model.gpt` lists and `optim.stacking` stacks them."""
    layers, d, vocab = model.n_layer, model.n_embd, model.vocab_size
    q, kv = model.n_head * model.head_dim, model.n_kv_head * model.head_dim
    valued = value_layers(model)
    yield _Group(1, (vocab, d), 1, 0, muon=False)  # wte
    yield _Group(1, (d, vocab), 0, 1, muon=False)  # lm_head
    yield _Group(layers, (d, q), 0, 1, muon=True)  # c_q
    yield _Group(2 * layers, (d, kv), 0, 1, muon=True)  # c_k, c_v
    yield _Group(layers, (q, d), 1, 0, muon=True)  # attn/c_proj
    yield _Group(layers, (d, 4 * d), 0, 1, muon=True)  # c_fc
    yield _Group(layers, (4 * d, d), 1, 0, muon=True)  # mlp/c_proj
    if valued:
        yield _Group(valued, (vocab, kv), 0, 1, muon=False)  # value_embeds
        channels = min(VALUE_GATE_CHANNELS, d)
        yield _Group(valued, (channels, model.n_kv_head), None, 1, muon=True)  # ve_gate


def _weights(step: Step, groups: tuple[_Group, ...], stacks: list[_Group]) -> int:
    """Parameters put together over `fsdp`, stacked for the decay, and in the computing dtype."""
    mesh = step.mesh
    whole = sum(group.gathered(mesh) for group in groups)
    matrices = sum(group.gathered(mesh) for group in stacks)
    total = whole if mesh.fsdp > 1 else 0
    # Measured: what the decay needs does not depend on the gradients, and XLA makes it at once, but
    # not where there is a tensor axis, nor on a single GPU.
    alone = mesh.size == 1 and step.platform == "cpu"
    if step.optim.weight_decay and mesh.tensor == 1 and (alone or mesh.fsdp > 1):
        total += mesh.shards * sum(group.share(mesh) for group in stacks)
    if step.compute_bytes < WIDE:
        converted = matrices * (1 if step.fp8 else step.compute_bytes) // WIDE
        if step.platform == "cpu":
            # Measured: a CPU computes in float32 what it is given in bf16. It converts weights for
            # the forward and for the backward pass before the loop that accumulates; without one,
            # the converted take the place of those put together.
            copies = 1 if mesh.fsdp == 1 else 0
            converted = matrices * (2 if step.accumulation > 1 else copies)
        head = next(group for group in groups if not group.muon)  # as large as wte
        total += converted + head.gathered(mesh) * step.compute_bytes // WIDE
    return total


def _gradients(step: Step, groups: tuple[_Group, ...]) -> int:
    """Gradients that exist when the loss is computed.

    That of the head is computed with the loss. Accumulation holds the sums of all; without it,
    measured, XLA has the zeros ready to which the gradients of looked-up tables are added.
    """
    tables = [group.gathered(step.mesh) for group in groups if not group.muon]
    if step.accumulation == 1:
        return sum(tables)
    return sum(group.gathered(step.mesh) for group in groups) + tables[0]  # as large as the head


def _activations(step: Step) -> int:
    """What the backward pass needs of the forward pass, for all layers, at the end of the latter.

    A token and layer: the residual before each half and its norm, q and what was attended (6 D);
    q before its norm, and k before and after, and v; the hidden units before and after relu^2, or
    after it alone. For products of fp8 what they multiply is in 8 bits: the norms, the last, and
    one more of what was attended.
    """
    model, mesh = step.model, step.mesh
    d, layers, valued = model.n_embd, model.n_layer, value_layers(model)
    # measured: a CPU holds nearly all in float32
    saved = WIDE if step.platform == "cpu" else step.compute_bytes
    q = model.n_head * model.head_dim // mesh.tensor
    kv = model.n_kv_head * model.head_dim // mesh.tensor
    hidden = 4 * d // (mesh.tensor if 4 * d % mesh.tensor == 0 else 1)
    units = 1 if step.lean_relu2 and not step.fp8 else 2
    layer = saved * (4 * d + 3 * q + 3 * kv + units * hidden)
    if step.fp8:
        layer += q - (saved - 1) * (2 * d + hidden)
    if model.residual_scalars:
        layer += saved * d  # the residual before it was scaled
    # the embeddings and what is looked up, features and their gradient
    stem = saved * ((5 + model.smear) * d + valued * kv)
    tokens = step.rows * model.sequence_len
    return tokens * (layers * layer + stem) + step.rows * _loops(step)


def _loops(step: Step) -> int:
    """What the loops over heads of `blocked_attention` cost beside what they need: a row's bytes.

    Measured. The zeros into which the loops put dq, dk and dv are made for all layers before the
    loss. A loop of one head is no loop: XLA sees that the backward pass computes the scores of the
    forward pass again, and saves them instead, and the keys and values that each block sees.
    """
    if step.platform != "cpu":
        return 0
    model = step.model
    time, size = model.sequence_len, model.head_dim
    queries, groups = model.n_head // step.mesh.tensor, model.n_kv_head // step.mesh.tensor
    if groups > 1:
        return step.compute_bytes * model.n_layer * time * size * (queries + 2 * groups)
    block, total = max(MIN_BLOCK, math.ceil(time / MAX_BLOCKS)), 0
    for window in windows(model):
        for start in range(0, time, block):
            stop = min(start + block, time)
            seen = stop - max(0, start - window)
            total += WIDE * seen * (queries * (stop - start) + 2 * size)
    return total


def _logits(step: Step) -> int:
    """One chunk of `model.loss.cross_entropy`, which cuts rows along time in equal parts."""
    time, vocab = step.model.sequence_len, step.model.vocab_size
    asked = step.chunk_rows or CHUNK_ROWS[step.platform]
    tokens = step.rows * math.ceil(time / math.ceil(time / max(1, asked // step.rows)))
    if vocab % step.mesh.tensor == 0:
        vocab //= step.mesh.tensor
    if step.fused:  # logits and their gradient
        return 2 * step.compute_bytes * tokens * vocab
    size = LOGITS_COPIES * WIDE
    # Measured: where a library multiplies, as on a GPU, the gradient has a place of its own
    size += step.compute_bytes if step.platform == "gpu" else 0
    return size * tokens * vocab
