"""What the stages after pretraining learn from: the mixtures of nanochat (data, no code).

Numbers behind names are rows of the whole data set on the hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Amount:
    """How much of a source: `rows` of it (None: all; generated tasks need a number), so often."""

    rows: int | None = None
    epochs: float = 1.0


Amounts = Mapping[str, Amount]

# November 2025, the $100 model: 568K conversations of the hub, then the small generated ones.
MID: Amounts = {
    "smoltalk": Amount(),  # 460,341
    "mmlu": Amount(),  # 99,842: auxiliary_train
    "gsm8k": Amount(),  # 7,473
    "identity": Amount(rows=1_000, epochs=2),
    "spelling": Amount(rows=200_000),
    "counting": Amount(rows=80_000),
}
SFT: Amounts = {
    "arc_easy": Amount(),  # 2,251
    "arc_challenge": Amount(),  # 1,119
    "gsm8k": Amount(),  # 7,473
    "smoltalk": Amount(rows=10_000),
    "identity": Amount(rows=1_000),
    "spelling": Amount(rows=300),
    "counting": Amount(rows=300),
}

# July 2026, which has no midtraining: 790K conversations in one stage.
MODERN_SFT: Amounts = {
    "smoltalk": Amount(),
    "mmlu": Amount(epochs=3),
    "gsm8k": Amount(epochs=4),
}

# Of the test splits, in about the shares of the training ones; of both years.
MID_VALIDATION: Amounts = {
    "smoltalk": Amount(),  # 24,229
    "mmlu": Amount(rows=5_200),  # of 14,042
    "gsm8k": Amount(rows=420),  # of 1,319
}
SFT_VALIDATION: Amounts = {"smoltalk": Amount()}
