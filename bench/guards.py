"""Every guard against what other packages do, broken on purpose: its test must notice.

    python bench/guards.py [--only WORDS] [--jobs N]

Breaks each guard by one small change in a scratch copy of this checkout, runs its test, which has
to fail, and restores the line; then runs all the tests again, which have to pass. Prints a table
and exits 1 where a broken guard went unnoticed. Run it once for each version of JAX, with the
Python of its environment: the built extension is copied as it is.
"""

from __future__ import annotations

import argparse
import platform
import queue
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from mutations import failure

ROOT = Path(__file__).parents[1]


class Guard(NamedTuple):
    """A guard, the change that breaks it, and the test that has to notice."""

    name: str
    file: str  # below jaxchat/
    old: str  # occurs once
    new: str
    test: str  # below tests/


def reused(function: str, made: str, name: str = "packed") -> tuple[str, str]:
    """A line that makes an array `name`, and one that takes that of the call before."""
    before = f"{function}.__dict__.setdefault('{name}', "
    return f"{name} = {made}", f"{name} = {before}{made}); {name}[:] = {made}"


HANDING = "inference/test_handing_over.py"
CHECKPOINT = "train/test_checkpoint.py::test_"
NAMES = f"{CHECKPOINT}names_and_shapes_are_those_that_were_saved"
AXIS = f"{CHECKPOINT}only_the_first_axis_of_the_stacks_may_differ"
ROWS = "train/test_fit.py::test_rows_beyond_the_vocabulary_are_refused"
TRACKERS = "train/test_trackers.py::test_"
IMPORT = "checkpoints/test_importing.py::test_a_tokenizer_of_another_size_does_not_match"

BATCH = "(len(indices), self.manifest.row_tokens)"

GUARDS = (
    Guard(
        "packed slots are new arrays", "inference/jitted.py",
        *reused("packed_slots", 'np.zeros(len(slots), [*SLOT, ("forced", "i4", (steps,))])'),
        HANDING,
    ),
    Guard(
        "packed changes are new arrays", "inference/changes.py",
        *reused("packed_changes", 'np.zeros(len(slots), [*COLUMNS, ("text", "i4", (positions,))])'),
        HANDING,
    ),
    Guard(
        "packed masks are new arrays", "inference/masks.py",
        *reused("free_masks", "np.full((slots + 1, -(-vocab // 32) + 1), 0xFFFFFFFF, np.uint32)"),
        HANDING,
    ),
    Guard(
        "padded prompts are new arrays", "inference/jitted.py",
        *reused("padded", "np.zeros((1, length), np.int32)", "row"), HANDING,
    ),
    Guard(
        "batches of shards are new arrays", "data/loader.py",
        *reused("type(self).take", f"np.empty({BATCH}, np.int32)", "rows"),
        "data/test_stream.py::test_batches_are_arrays_of_their_own",
    ),
    Guard(
        "a batch on its way is not written to", "train/loop.py",
        "        flat = self.batches[data_index(step, self.skipped)]\n",
        "        fresh = self.batches[data_index(step, self.skipped)]\n"
        "        flat = self.__dict__.setdefault('flat', fresh)\n"
        "        [np.copyto(flat[name], fresh[name]) for name in flat]\n",
        "train/test_fit.py::test_no_batch_is_written_to_once_it_is_handed_over",
    ),
    Guard(
        "Orbax's answer to a save is looked at", "checkpoints/save.py",
        "if not begun:", "if False:",
        f"{CHECKPOINT}a_save_below_the_newest_step_is_no_silent_success",
    ),
    Guard(
        "names and shapes are compared with the saved ones", "checkpoints/save.py",
        "        if old != new:", "        if False:", NAMES,
    ),
    Guard(
        "only stacks may have another first axis", "checkpoints/save.py",
        "return any(isinstance(key, DictKey) and key.key == STACKS for key in path)", "return True",
        NAMES,
    ),
    Guard(
        "stacks may have another first axis", "checkpoints/save.py",
        "shape = leaf.shape[1:] if _is_stack(path) else leaf.shape", "shape = leaf.shape", AXIS,
    ),
    Guard(
        "what is cut off a stack is filling", "checkpoints/save.py",
        'if meta.get("fingerprint") != fingerprint(restored["state"]):', "if False:", AXIS,
    ),
    Guard(
        "ids of training rows", "train/loop.py",
        'check_ids(flat["tokens"], self.job.model.vocab_size,', 'check_ids(flat["tokens"], 2**31,',
        ROWS,
    ),
    Guard(
        "ids of held-out rows", "train/loop.py",
        'check_ids(batch["tokens"], job.model.vocab_size,', 'check_ids(batch["tokens"], 2**31,',
        ROWS,
    ),
    Guard(
        "ids of rows of text", "evals/bpb.py",
        'check_ids(np.asarray(batch["tokens"]), model.vocab_size,',
        'check_ids(np.asarray(batch["tokens"]), 2**31,', ROWS,
    ),
    Guard(
        "ids of CORE's prompts", "evals/core/scoring.py",
        "check_ids(batch.arrays[name], model.config.vocab_size,",
        "check_ids(batch.arrays[name], 2**31,",
        "evals/test_core_golden.py::test_prompts_beyond_the_vocabulary_are_refused",
    ),
    Guard(
        "ids of scored prompts", "evals/token_scores.py",
        "check_ids(arrays[0], model.config.vocab_size,", "check_ids(arrays[0], 2**31,",
        "evals/test_token_scores.py::test_ids_beyond_the_vocabulary_are_refused",
    ),
    Guard(
        "ids of prompts of the engine", "inference/engine.py",
        "if not all(0 <= token < self.config.vocab_size for token in request.tokens):", "if False:",
        "inference/test_engine.py::test_a_prompt_that_does_not_fit_is_refused_before_anything_runs",
    ),
    Guard(
        "ids of prompts of /v1/completions", "serve/texts.py",
        "    if worst >= tokenizer.vocab_size:", "    if False:",
        "serve/test_completions.py::test_a_bad_completion_says_which_field_is_wrong",
    ),
    Guard(
        "ids of an import from transformers", "checkpoints/huggingface.py",
        "if rows not in (vocab_size, padded) and not is_ours:", "if False:", IMPORT,
    ),
    Guard(
        "ids of an import from nanochat", "checkpoints/nanochat.py",
        'if tokenizer.vocab_size != sizes["vocab_size"]:', "if False:", IMPORT,
    ),
    Guard(
        "keys of tokens are no keys of weights", "inference/sampling.py",
        "jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), position)",
        "jax.random.fold_in(jax.random.key(seed), stream + position)",
        "inference/test_sampling.py::test_no_token_has_the_key_of_a_weight",
    ),
    Guard(
        "trackers get floats", "train/trackers.py",
        "name: float(value)", "name: value", f"{TRACKERS}only_numbers_are_tracked",
    ),
    Guard(
        "a stage done again renames its run", "train/trackers.py",
        "name = free_name(title, _trackio_names(trackio.Api()))", "name = title",
        f"{TRACKERS}a_stage_that_is_done_again_renames_its_run_and_resumes_that",
    ),
    Guard(
        "a resume continues the run it began", "train/trackers.py",
        "int(count), noted or title", "int(count), title",
        f"{TRACKERS}a_stage_that_is_done_again_renames_its_run_and_resumes_that",
    ),
    Guard(
        "safetensors gets contiguous arrays", "checkpoints/tensors.py",
        "np.ascontiguousarray(tensors[name]).reshape(-1)", 'tensors[name].ravel("K")',
        "checkpoints/test_safetensors.py",
    ),
)  # fmt: skip


def copied(folder: Path) -> Path:
    """A copy of this checkout's files, as they are, with the built extension."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    built = [str(path.relative_to(ROOT)) for path in ROOT.glob("jaxchat/_bpe*")]
    for name in {*listed.stdout.splitlines(), *built}:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


def noticed(tree: Path, guard: Guard, seconds: int) -> str:
    """The test that fails without a guard; "" where none does. The file is restored."""
    path = tree / "jaxchat" / guard.file
    source = path.read_text(encoding="utf-8")
    if source.count(guard.old) != 1:
        sys.exit(f"{guard.file} has {guard.old!r} {source.count(guard.old)} times; bring it up")
    print(guard.name, file=sys.stderr, flush=True)
    path.write_text(source.replace(guard.old, guard.new), encoding="utf-8")
    try:
        return failure(tree, [f"tests/{guard.test}"], seconds)
    finally:
        path.write_text(source, encoding="utf-8")


def main() -> None:
    """Red for each guard, then green for all; a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="guards whose name has these words")
    parser.add_argument("--jobs", type=int, default=1, help="guards at once, each in a copy")
    parser.add_argument("--seconds", type=int, default=900, help="the limit of one test")
    args = parser.parse_args()
    guards = [guard for guard in GUARDS if args.only in guard.name]
    print(f"Python {platform.python_version()}, jax {version('jax')}", flush=True)
    print("| guard | broken in | broken | restored |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        trees: queue.Queue[Path] = queue.Queue()
        for number in range(args.jobs):
            trees.put(copied(Path(folder, str(number))))

        def red(guard: Guard) -> str:
            tree = trees.get()  # its own: nothing else is broken there
            try:
                return noticed(tree, guard, args.seconds)
            finally:
                trees.put(tree)

        def green(test: str) -> str:
            return failure(Path(folder, "0"), [f"tests/{test}"], args.seconds)

        broken = list(pool.map(red, guards))
        tests = sorted({guard.test for guard in guards})
        restored = dict(zip(tests, pool.map(green, tests), strict=True))
    for guard, failed in zip(guards, broken, strict=True):
        first = f"red: {failed.partition(' - ')[0]}" if failed else "NOT NOTICED"
        then = f"red: {restored[guard.test]}" if restored[guard.test] else "green"
        print(f"| {guard.name} | jaxchat/{guard.file} | {first} | {then} |")
    sys.exit(not all(broken) or any(restored.values()))


if __name__ == "__main__":
    main()
