"""The rows of the screening that docs/screening.md has registered, in their order.

A row is one run: a variant at a depth with a seed. The rates of a preset and the switches that are
confirmed depend on results, so `rows` reads those of each row before it yields the next.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass

from screen_pairs import Difference, difference

from jaxchat.config import loading
from jaxchat.config.schema import RunConfig

WIDTH, VOCAB, BATCH = 128, 1024, 1024  # BATCH in tokens
STEPS = {1: 256, 2: 400}  # of the baseline
SEEDS, FRESH, WIDE_SEEDS, TUNING_SEED = (0, 1, 2), (3, 4, 5), tuple(range(6)), 100
# Of one or two layers, the middle layer is the last: `backout` could only turn the sign of all
# features, which it once did (docs/screening.md).
COMMON = (
    "model.backout=false",
    f"tokenizer.vocab_size={VOCAB}", "model.sequence_len=256", f"model.n_embd={WIDTH}",
    "model.n_head=1", "model.n_kv_head=1", f"base.batch_tokens={BATCH}", "base.micro_rows=4",
    "optim.warmup_steps=10",
)  # fmt: skip
PRESETS = ("september", "modern", "classic")
# nanochat's rates at width 768: matrices, embeddings, head, scalars
RATES = {
    "classic": (0.02, 0.2, 0.004, 0.5),
    "modern": (0.02, 0.3, 0.008, 0.5),
    "september": (0.02, 0.3, 0.008, 0.5),
}
DECAY = 0.28  # nanochat's of 2026
SCALES = (0.25, 0.5, 1.0, 2.0)
MOST_SCALES = 10  # of one preset
SWITCHES = {  # settings beside the baseline's
    "uniform": ("model.value_embeds_std=0",),
    "smear": ("model.smear=true",),
    "tail": (),  # of the baseline's own rows
    "cropped": (),  # what has no settings is a prototype of bench/screen.py
    "documents": (),
    "fourth": (),
    "vocab4k": ("tokenizer.vocab_size=4096",),
    "five": ("tokenizer.tool_tokens=false",),
}
WIDE = ("model.n_embd=256", "model.n_head=2", "model.n_kv_head=2")
VOCAB16K = ("tokenizer.vocab_size=16384",)
BASELINES = {"powers": "wide"}  # of all others: "baseline"
COMPARED = ("modern", "classic", *SWITCHES, "powers", "vocab16k")
CONFIRMED = 2

Key = tuple[str, int, int]  # variant, depth, seed
Bits = Mapping[Key, float]  # bits per byte


@dataclass(frozen=True)
class Choice:
    """The rates of a preset, by factors on nanochat's."""

    scale: float = 1.0  # of all
    adam: float = 1.0  # of head and embeddings
    decay: float = DECAY

    def name(self, preset: str) -> str:
        """The variant of the row that tries it."""
        return f"{preset} {self.scale:g} {self.adam:.2g} {self.decay:g}"

    def settings(self, preset: str, head: float = 1.0, embedding: float = 1.0) -> tuple[str, ...]:
        """The preset and its rates; `head` and `embedding` are two more factors."""
        rates = RATES[preset]
        adam = self.scale * self.adam
        return (
            f'run.preset="{preset}"',
            f"optim.matrix_lr={rates[0] * self.scale:.6g}",
            f"optim.embedding_lr={rates[1] * adam * embedding:.6g}",
            f"optim.unembedding_lr={rates[2] * adam * head:.6g}",
            f"optim.scalar_lr={rates[3] * self.scale:.6g}",
            f"optim.weight_decay={self.decay}",
        )


@dataclass(frozen=True)
class Row:
    """One run to make."""

    variant: str
    depth: int
    seed: int
    settings: tuple[str, ...]

    @property
    def key(self) -> Key:
        return self.variant, self.depth, self.seed

    def config(self) -> RunConfig:
        """The run's configuration, with the steps of the baseline."""
        document = loading.read_toml(loading.find_tier("cpu"), "config")
        own = (
            f'run.name="{self.variant}"', f"run.depth={self.depth}", f"run.seed={self.seed}",
            f"base.steps={STEPS[self.depth]}",
        )  # fmt: skip
        changed = loading.apply_overrides(document, [*COMMON, *own, *self.settings])
        return loading.from_document(changed, self.variant)


Rows = Generator[Row, None, None]


def tuning(preset: str, bits: Bits) -> Generator[Row, None, Choice]:
    """The rows that find a preset's rates, and the best: scale first, then Adam's, then decay."""

    def row(choice: Choice) -> Row:
        return Row(choice.name(preset), 1, TUNING_SEED, choice.settings(preset))

    def best(choices: Iterable[Choice]) -> Choice:
        return min(choices, key=lambda choice: bits[row(choice).key])

    decay = 0.0 if preset == "classic" else DECAY
    scales = list(SCALES)
    while True:
        tried = [Choice(scale, decay=decay) for scale in scales]
        yield from map(row, tried)
        found = best(tried)
        if found.scale not in (scales[0], scales[-1]) or len(scales) == MOST_SCALES:
            break
        least = found.scale == scales[0]
        scales = [scales[0] / 2, *scales] if least else [*scales, scales[-1] * 2]
    tried = [found, *(Choice(found.scale, factor, decay) for factor in (1 / 3, 3.0))]
    yield from map(row, tried)
    found = best(tried)
    if decay:
        tried = [found, Choice(found.scale, found.adam, 0.0)]
        yield from map(row, tried)
        found = best(tried)
    return found


def chosen(preset: str, bits: Bits) -> Choice | None:
    """The best rates of a preset; None while a row is missing."""
    search = tuning(preset, bits)
    while True:
        try:
            if next(search).key not in bits:
                return None
        except StopIteration as end:
            best: Choice = end.value
            return best


def paired(bits: Bits, switch: str, seeds: tuple[int, ...] = SEEDS) -> Difference | None:
    """The difference that a switch makes; None while a row is missing."""
    baseline, depths = BASELINES.get(switch, "baseline"), tuple(STEPS)
    if switch == "powers":
        depths, seeds = (1,), WIDE_SEEDS
    wanted = [(name, d, s) for name in (switch, baseline) for d in depths for s in seeds]
    if any(key not in bits for key in wanted):
        return None
    return difference(
        {d: [(bits[switch, d, s], bits[baseline, d, s]) for s in seeds] for d in depths}
    )


def candidates(bits: Bits) -> list[str]:
    """The switches that are confirmed: those that differ the most, in standard errors."""
    found = {name: paired(bits, name) for name in SWITCHES}
    ranked = sorted((d.t, name) for name, d in found.items() if d is not None)
    return [name for _, name in reversed(ranked[-CONFIRMED:])]


def rows(bits: Bits) -> Rows:
    """All rows in their order. Those of a row's key must be in `bits` when the next is asked for;
    a row may come twice.
    """
    best = {}
    for preset in PRESETS:
        best[preset] = yield from tuning(preset, bits)
    baseline = best["september"].settings("september")
    steps = {depth: (f"base.steps={count // 2}",) for depth, count in STEPS.items()}
    for name in ("baseline", "half"):
        for d in STEPS:
            for s in SEEDS:
                yield Row(name, d, s, (*baseline, *(steps[d] if name == "half" else ())))
    for preset in PRESETS[1:]:
        yield from _both(preset, SEEDS, best[preset].settings(preset))
    for name in SWITCHES:
        yield from _switch(name, SEEDS, best["september"])
    for name in candidates(bits):
        yield from _both("baseline", FRESH, baseline)
        yield from _switch(name, FRESH, best["september"])
    ratio = WIDTH / 768
    july = best["september"].settings("september", ratio**-0.5, ratio**0.5)
    powers = ("optim.head_width_power=-0.5", "optim.embedding_width_power=-0.5")
    for seed in WIDE_SEEDS:
        yield Row("wide", 1, seed, (*baseline, *WIDE))
        yield Row("powers", 1, seed, (*july, *powers, *WIDE))
    yield from _both("vocab16k", SEEDS, (*baseline, *VOCAB16K))


def _switch(name: str, seeds: tuple[int, ...], best: Choice) -> Rows:
    if name != "tail":
        twice = 2.0 if name == "fourth" else 1.0
        settings = best.settings("september", embedding=twice)
        yield from _both(name, seeds, (*settings, *SWITCHES[name]))


def _both(variant: str, seeds: tuple[int, ...], settings: tuple[str, ...]) -> Rows:
    for depth in STEPS:
        for seed in seeds:
            yield Row(variant, depth, seed, settings)
