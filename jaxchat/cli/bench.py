"""`jaxchat bench`: how fast this machine is (layer 5). Nothing heavy is imported before it runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxchat import paths
from jaxchat.cli.args import depth, positive
from jaxchat.config.schema import ComputeConfig, MeshConfig
from jaxchat.errors import ConfigError
from jaxchat.parallel.launch_env import start_jax
from jaxchat.runs import run_dir

if TYPE_CHECKING:
    from jaxchat.config.schema import ModelConfig
    from jaxchat.inference.measure import Reading
    from jaxchat.tokenizer import Tokenizer

FORMAT = "jaxchat-bench-inference-1"
VOCAB_SIZE = 32_768  # of random weights


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Adds inference to the parser of `jaxchat bench`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    inference = commands.add_parser(
        "inference",
        help="tokens a second, time to the first token, and memory bandwidth used",
        description="Measures the engine with a run's model, or with random weights of a depth.",
    )
    inference.add_argument("--run", metavar="NAME", help="default: the last, unless --depth")
    inference.add_argument("--stage", choices=("base", "mid", "sft", "rl"))
    inference.add_argument("--depth", type=depth, metavar="N", help="random weights instead")
    inference.add_argument(
        "--preset", choices=("classic", "modern"), default="modern", help="of random weights"
    )
    inference.add_argument(
        "--batch", type=_numbers, default=(1, 8, 32), metavar="N,N", help="at once (1,8,32)"
    )
    inference.add_argument("--prompt", type=positive, default=128, metavar="N", help="tokens (128)")
    inference.add_argument("--tokens", type=positive, default=128, metavar="N", help="said (128)")
    inference.add_argument(
        "--products", choices=("auto", "plain", "bfloat16"), default="auto",
        help="how large matrices are multiplied (as compute.products)",
    )  # fmt: skip
    inference.add_argument("--repeats", type=positive, default=3, metavar="N", help="best of (3)")
    inference.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    inference.add_argument(
        "--nanochat", type=Path, metavar="CHECKOUT", help="compare with its engine, on the CPU"
    )
    inference.add_argument(
        "--nanochat-python", metavar="PYTHON", default="python3", help="one that has torch"
    )
    inference.set_defaults(run_command=inference_command)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(positive(part) for part in text.split(","))


def inference_command(args: argparse.Namespace) -> int:
    """Prints a table of figures, and the ratio to nanochat where that is asked for."""
    if args.depth and (args.run or args.stage):
        raise ConfigError("--depth takes random weights and --run a run's; give one of them.")
    root = paths.home(getattr(args, "home", None))
    if not args.depth:
        run_dir.find(root, args.run)  # says what is missing, before JAX starts
    start_jax(MeshConfig(), root / "xla")
    from jaxchat.cli.nanochat_peer import check_checkout
    from jaxchat.inference.engine import ROUNDED_SLOTS
    from jaxchat.inference.measure import device_bandwidth, measure
    from jaxchat.model.capabilities import inference_compute
    from jaxchat.progress import Progress

    title, model, params, tokenizer = _model(args, root)
    _check(args, model)
    if args.nanochat is not None:
        check_checkout(args.nanochat)
    bandwidth, source = device_bandwidth()
    compute = inference_compute(ComputeConfig(products=args.products), model)
    readings = []
    with Progress("inference", total=len(args.batch), unit="batch sizes") as progress:
        for number, batch in enumerate(args.batch):
            reading = measure(
                params, model, tokenizer, batch=batch, prompt=args.prompt, tokens=args.tokens,
                compute=compute, bandwidth=bandwidth, repeats=args.repeats,
            )  # fmt: skip
            readings.append(reading)
            progress.update(number + 1)
    theirs = _theirs(args, model, params)
    told = (
        "plain" if compute.matmul == "default" else f"{compute.matmul} from {ROUNDED_SLOTS} at once"
    )
    print(
        f"{title}; {args.prompt} + {args.tokens} tokens; large products {told}; "
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
        from jaxchat.runs.inputs import tokenizer_of
        from jaxchat.runs.opening import find_model, load_model

        context, stage = find_model(root, args.run, args.stage, ("rl", "sft", "mid", "base"))
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


def _check(args: argparse.Namespace, model: ModelConfig) -> None:
    if args.prompt + args.tokens > model.sequence_len:
        raise ConfigError(
            f"--prompt {args.prompt} and --tokens {args.tokens} are over the model's context of "
            f"{model.sequence_len}; choose fewer."
        )


def _theirs(
    args: argparse.Namespace, model: ModelConfig, params: Any
) -> dict[int, dict[str, float]]:
    if args.nanochat is None:
        return {}
    from jaxchat.cli.nanochat_peer import generate

    return generate(
        args.nanochat.resolve(), args.nanochat_python, model, params, batches=args.batch,
        prompt=args.prompt, tokens=args.tokens,
    )  # fmt: skip


def table(readings: Sequence[Reading], theirs: dict[int, dict[str, float]]) -> str:
    """The figures as text, a line a batch size."""
    head = ["batch", "prefill tok/s", "first token ms", "decode tok/s", "MB/token", "MBU"]
    lines = [head + (["nanochat tok/s", "ratio"] if theirs else [])]
    for one in readings:
        line = [
            str(one.batch), f"{one.prefill_tokens_per_second:,.0f}",
            f"{1e3 * one.first_token_seconds:.1f}", f"{one.decode_tokens_per_second:,.0f}",
            f"{one.bytes_per_token / 1e6:.2f}", f"{one.mbu:.1%}",
        ]  # fmt: skip
        if one.batch in theirs:
            rate = theirs[one.batch]["decode_tokens_per_second"]
            line += [f"{rate:,.0f}", f"{one.decode_tokens_per_second / rate:.2f}"]
        lines.append(line + [""] * (len(lines[0]) - len(line)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
