"""`jaxchat eval bpb`: bits per byte of a run's model on the run's text (layer 5).

Nothing heavy is imported before the command runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from jaxchat import home
from jaxchat.arguments import positive
from jaxchat.home import ArtifactError

if TYPE_CHECKING:
    import numpy as np

    from jaxchat.evaluation import Opened

SPLITS = ("train", "heldout")
ROWS = 1_024
BATCH_TOKENS = {"cpu": 4_096}
GPU_BATCH_TOKENS = 65_536


def add_bpb(commands: Any, parents: Sequence[argparse.ArgumentParser] = ()) -> None:
    """Adds bpb to the commands of `jaxchat eval`; `parents` hold the common arguments."""
    bpb = commands.add_parser(
        "bpb",
        parents=list(parents),
        help="bits per byte of text",
        description="Measures bits per byte on the text that the run trained on, and on the shard "
        "that it held out. They do not depend on the tokenizer.",
    )
    bpb.add_argument("--run", metavar="NAME", help="name of the run (default: the last)")
    bpb.add_argument("--stage", choices=("base", "mid", "sft", "rl"), default="base")
    bpb.add_argument("--split", choices=SPLITS, help="default: both")
    bpb.add_argument(
        "--rows", type=positive, default=ROWS, metavar="N", help=f"of each split ({ROWS:,})"
    )
    bpb.set_defaults(run_command=bpb_command)


def bpb_command(args: argparse.Namespace) -> int:
    """Measures, and prints a line a split."""
    from jaxchat import machine, runs
    from jaxchat.config import MeshConfig

    root = home.home(getattr(args, "home", None))
    runs.find(root, args.run)  # says what is missing, before JAX starts
    machine.start_jax(MeshConfig(), root / "xla")
    from jaxchat.evaluation import open_model

    opened = open_model(root, args.run, args.stage)
    measured = {}
    for split in SPLITS if args.split is None else (args.split,):
        bits, rows = measure(opened, split, args.rows)
        tokens = rows * opened.config.model.sequence_len
        print(f"{split:<8} {bits:.4f} bits per byte over {rows:,} rows, {tokens:,} tokens")
        measured[split] = {"bits_per_byte": bits, "rows": rows}
    path = opened.run / "eval" / f"bpb-{opened.stage}.json"
    kept = home.read_json(path) if path.exists() else {}
    if kept.get("model") != opened.digest:
        kept = {"model": opened.digest}
    home.write_json(path, kept | measured)
    return 0


def measure(opened: Opened, split: str, limit: int) -> tuple[float, int]:
    """Bits per byte over the first `limit` rows of a split, or all; and how many there were.

    Raises ArtifactError when there are none.
    """
    from jaxchat.evals.bpb import bits_per_byte
    from jaxchat.progress import Progress
    from jaxchat.sharding import batch_shards

    source = _rows_of(opened, split)
    count = min(limit, len(source))
    platform, shards = opened.mesh.devices.flat[0].platform, batch_shards(opened.mesh)
    tokens = BATCH_TOKENS.get(platform, GPU_BATCH_TOKENS)
    size = shards * max(1, tokens // opened.config.model.sequence_len)
    size = min(size, -(-count // shards) * shards)
    with Progress(f"{opened.stage} on {split}", count, "row") as progress:

        def batches() -> Iterator[dict[str, np.ndarray]]:
            for batch in source.batches(count, size):
                yield batch
                progress.advance(min(size, count - progress.done))

        bits = bits_per_byte(
            opened.params,
            batches(),
            opened.tokenizer.token_bytes,
            opened.config.model,
            opened.compute,
            opened.mesh,
        )
    return bits, count


class _Source:
    """Rows in the order in which training or its evaluation takes them."""

    def __init__(self, rows: Any, seed: int | None) -> None:
        self.rows, self.seed = rows, seed

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, count: int, size: int) -> Iterator[dict[str, np.ndarray]]:
        """The first `count` rows in batches of `size`; what the last one lacks is masked."""
        import numpy as np

        for first in range(0, count, size):
            places = np.arange(first, first + size)
            tokens = self._take(np.minimum(places, count - 1))
            mask = np.broadcast_to((places < count)[:, None], tokens.shape)
            yield {"tokens": tokens, "mask": mask.astype(np.float32)}

    def _take(self, places: np.ndarray) -> np.ndarray:
        import numpy as np

        if self.seed is not None:
            taken: np.ndarray = self.rows.take(places, self.seed)
            return taken
        return np.stack([self.rows[int(place)]["tokens"] for place in places])


def _rows_of(opened: Opened, split: str) -> _Source:
    from jaxchat.data.inputs import read_inputs
    from jaxchat.data.stream import HeldOutRows, ShardedRows
    from jaxchat.data.text_rows import text_folder

    row_tokens = opened.config.model.sequence_len + 1
    inputs = read_inputs(opened.run / "data")
    folder = text_folder(opened.run, inputs, opened.tokenizer, row_tokens)
    if not folder.exists():
        raise ArtifactError(
            f"the run in {opened.run} has no rows of text in {folder}; make them with: jaxchat "
            f"data prepare --run {opened.run.name}"
        )
    if split == "heldout":
        return _Source(HeldOutRows(folder, opened.tokenizer.hash), None)
    return _Source(ShardedRows(folder, opened.tokenizer.hash), opened.config.seed)
