"""`jaxchat bench`: speed of the engine on this machine, and of nanochat's beside it.

nanochat's engine runs in a process of its own, with a Python that has torch; the script for it is
in the checkout of this project (`bench/nanochat_peer`), not in its packages. Nothing heavy is
imported before the command runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jaxchat
from jaxchat import paths
from jaxchat.cli.args import Parser, add_model, depth, positive
from jaxchat.config.operations import WEIGHTS
from jaxchat.config.schema import MODELS, PRESETS, PRODUCTS, ComputeConfig, MeshConfig
from jaxchat.errors import ConfigError
from jaxchat.parallel.launch_env import start_jax
from jaxchat.runs import run_dir, tables

if TYPE_CHECKING:
    from jaxchat.config.schema import ModelConfig
    from jaxchat.inference.measure import Reading
    from jaxchat.tokenizer import Tokenizer

SCRIPT = Path(jaxchat.__file__).resolve().parents[1] / "bench" / "nanochat_peer" / "generate.py"
SETTINGS = "sequence_len vocab_size n_layer n_head n_kv_head n_embd window_pattern".split()
FORMAT = "jaxchat-bench-inference-1"
VOCAB_SIZE = 32_768  # of random weights


def add_commands(parser: Parser) -> None:
    """Adds inference to the parser of `jaxchat bench`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    inference = commands.add_parser(
        "inference",
        help="tokens a second, time to the first token, and memory bandwidth used",
        description="Measures the engine with a run's model, or with random weights of a depth.",
    )
    add_model(inference, MODELS)
    inference.option("--depth", depth, "N", "random weights instead")
    inference.option("--preset", str, None, "of random weights", "modern", choices=PRESETS)
    inference.option("--batch", _numbers, "N,N", "sequences (1,8,32)", (1, 8, 32))
    inference.option("--prompt", positive, "N", "tokens (128)", 128)
    inference.option("--tokens", positive, "N", "new (128)", 128)
    products = "multiplication of large matrices (as compute.products)"
    inference.option("--products", str, None, products, "auto", choices=PRODUCTS)
    text = "of large matrices, as in chat and serve"
    inference.option("--weights", str, None, text, WEIGHTS[0], choices=WEIGHTS)
    inference.option("--repeats", positive, "N", "best of (3)", 3)
    inference.option("--json", Path, "FILE", "write the figures there too")
    inference.option("--nanochat", Path, "CHECKOUT", "compare with its engine, on the CPU")
    inference.option("--nanochat-python", str, "PYTHON", "one that has torch", "python3")
    inference.set_defaults(run_command=inference_command)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(positive(part) for part in text.split(","))


def inference_command(args: argparse.Namespace) -> int:
    """Prints a table of readings, with --nanochat their ratio to its own."""
    if args.depth and (args.run or args.stage):
        raise ConfigError("--depth takes random weights and --run a run's; give one of them.")
    root = paths.home(args.home)
    if not args.depth:
        run_dir.find(root, args.run)  # reports what is missing before JAX starts
    start_jax(MeshConfig(), root / "xla")
    from jaxchat.inference.engine import ROUNDED_SLOTS
    from jaxchat.inference.measure import device_bandwidth, measure
    from jaxchat.model.capabilities import inference_compute, with_weights
    from jaxchat.progress import Progress

    title, model, params, tokenizer = _model(args, root)
    if args.prompt + args.tokens > model.sequence_len:
        raise ConfigError(
            f"--prompt {args.prompt} and --tokens {args.tokens} are over the model's context of "
            f"{model.sequence_len}; choose fewer."
        )
    if args.nanochat is not None:
        _check_checkout(args.nanochat)
    bandwidth, source = device_bandwidth()
    compute = inference_compute(ComputeConfig(products=args.products), model)
    compute = with_weights(compute, args.weights)
    readings = []
    with Progress("inference", total=len(args.batch), unit="batch sizes") as progress:
        for number, batch in enumerate(args.batch):
            reading = measure(
                params, model, tokenizer, batch=batch, prompt=args.prompt, tokens=args.tokens,
                compute=compute, bandwidth=bandwidth, repeats=args.repeats,
            )  # fmt: skip
            readings.append(reading)
            progress.update(number + 1)
    theirs = {} if args.nanochat is None else _nanochat_readings(args, model, params)
    kind: str = "plain" if compute.matmul == "default" else compute.matmul
    if compute.weights != "auto":
        kind += f", weights {compute.weights}"
    elif compute.matmul != "default":
        kind += f" from {ROUNDED_SLOTS} at once"
    print(
        f"{title}; {args.prompt} + {args.tokens} tokens; large products {kind}; "
        f"{bandwidth / 1e9:.1f} GB/s ({source})\n"
    )
    print(table(readings, theirs))
    if args.json is not None:
        document = {
            "format": FORMAT, "model": title, "prompt": args.prompt, "tokens": args.tokens,
            "bandwidth": bandwidth, "bandwidth_source": source,
            "readings": [reading.to_json() for reading in readings],
            "nanochat": {str(batch): figures for batch, figures in theirs.items()},
        }  # fmt: skip
        paths.write_json(args.json, document)
    return 0


def _model(args: argparse.Namespace, root: Path) -> tuple[str, ModelConfig, Any, Tokenizer]:
    """A title, and a run's model or a random one."""
    if not args.depth:
        from jaxchat.runs.opening import find_model, load_model
        from jaxchat.runs.run_tokenizer import tokenizer_of

        context, stage = find_model(root, args.run, args.stage, MODELS[::-1])
        model = context.config.model
        title = f"run {context.root.name}, stage {stage}"
        return title, model, load_model(context.root, stage, model), tokenizer_of(context)
    import jax

    from jaxchat.config.derive import derive_model
    from jaxchat.model.gpt import init_params
    from jaxchat.tokenizer import Tokenizer
    from jaxchat.tokenizer.patterns import MIN_VOCAB_SIZE

    model = derive_model(args.depth, args.preset, VOCAB_SIZE)
    pairs = [bytes(divmod(n, 256)) for n in range(VOCAB_SIZE - MIN_VOCAB_SIZE)]
    tokenizer = Tokenizer([*(bytes([n]) for n in range(256)), *pairs])  # an id for every row
    title = f"random weights, {args.preset}, depth {args.depth}"
    return title, model, init_params(jax.random.key(0), model), tokenizer


def write_model(path: Path, model: ModelConfig, params: Any) -> None:
    """Writes an .npz of parameters in nanochat's names and layout, and their sizes as JSON."""
    import jax
    import numpy as np

    from jaxchat.checkpoints.nanochat import nanochat_name

    arrays = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        names = tuple(str(key.key) for key in keys)
        value = np.asarray(leaf, np.float32)
        value = value.T if names[-1] == "kernel" else value
        arrays[f"weight/{nanochat_name(names)}"] = value.reshape(value.shape or (1,))
    settings = json.dumps({"model": {name: getattr(model, name) for name in SETTINGS}})
    np.savez(path, allow_pickle=False, settings=np.array(settings), **arrays)


def _check_checkout(checkout: Path) -> None:
    """Raises ConfigError where there is no checkout of nanochat, or jaxchat is no checkout."""
    if not SCRIPT.is_file():
        raise ConfigError(f"--nanochat needs a checkout of jaxchat: there is no {SCRIPT}.")
    if not (checkout / "nanochat" / "engine.py").is_file():
        raise ConfigError(
            f"{checkout} is no checkout of nanochat: it has no nanochat/engine.py; give --nanochat "
            "the folder that git clone made."
        )


def _nanochat_readings(
    args: argparse.Namespace, model: ModelConfig, params: Any
) -> dict[int, dict[str, float]]:
    """For each batch size `prefill_seconds` and `decode_tokens_per_second` of nanochat's engine.

    Raises ConfigError where there is no such Python or it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "model.npz", Path(folder) / "out.json"
        write_model(file, model, params)
        options = {
            "nanochat": args.nanochat.resolve(),
            "model": file,
            "batch": ",".join(map(str, args.batch)),
            "prompt": args.prompt,
            "tokens": args.tokens,
            "out": out,
        }
        flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        try:
            subprocess.run([args.nanochat_python, str(SCRIPT), *flags], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ConfigError(
                f"nanochat's engine could not be run ({error}); --nanochat names a checkout of it "
                "and --nanochat-python a Python that has torch."
            ) from error
        readings = json.loads(out.read_text(encoding="utf-8"))
    return {int(batch): figures for batch, figures in readings.items()}


def table(readings: Sequence[Reading], theirs: dict[int, dict[str, float]]) -> str:
    """The readings, a line each batch size."""
    head = ["batch", "prefill tok/s", "first token ms", "decode tok/s", "MB/token", "MBU"]
    rows = [[*head, "nanochat tok/s", "ratio"] if theirs else head]
    for one in readings:
        row = [
            str(one.batch),
            f"{one.prefill_tokens_per_second:,.0f}",
            f"{1e3 * one.first_token_seconds:.1f}",
            f"{one.decode_tokens_per_second:,.0f}",
            f"{one.bytes_per_token / 1e6:.2f}",
            f"{one.mbu:.1%}",
        ]
        if one.batch in theirs:
            rate = theirs[one.batch]["decode_tokens_per_second"]
            row += [f"{rate:,.0f}", f"{one.decode_tokens_per_second / rate:.2f}"]
        rows.append(row + [""] * (len(rows[0]) - len(row)))
    return "\n".join(tables.table(rows))
