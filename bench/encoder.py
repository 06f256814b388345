"""The encoder beside an earlier build, tiktoken and gigatoken: MB/s of processor time, in turns.

    python bench/encoder.py --text DIR --before CHECKOUT --gigatoken VENV/bin/python
    python bench/encoder.py --adversarial --before CHECKOUT      long runs, random letters, scripts
    python bench/encoder.py --threads --text DIR                 two threads, two processes

Each encoder is a process of its own that reads the texts first and then encodes all of them when
it is asked to, so that what else the machine does falls on all alike; with --fresh a new process
each time, so that every text is new. gigatoken (pip install gigatoken==0.10.0 in an environment of
its own) reads our file of ranks with its own GPT-2's or GPT-4's pattern; for our own pattern it
cuts by GPT-4's. Speeds are of processor time; two threads and two processes are compared by the
clock.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jaxchat.config.machine import cores, processor
from jaxchat.data.files.textfiles import TextFiles
from jaxchat.tokenizer import train_tokenizer
from jaxchat.tokenizer.patterns import PATTERNS

OURS, BEFORE, TIKTOKEN, GIGATOKEN = "ours", "before", "tiktoken", "gigatoken"
ROOT = Path(__file__).resolve().parents[1]

# A child: reads the texts, and encodes them all at each line of its input.
CHILD = """
import json, sys, time
who, root, folder, pattern, path, threads, part, parts = sys.argv[1:]
texts = [json.loads(line)["text"] for line in open(path)][int(part)::int(parts)]
size = sum(len(text.encode()) for text in texts)
if who == "gigatoken":
    import gigatoken
    kind = "gpt2" if pattern == "gpt2" else "gpt4"
    tokenizer = gigatoken.Tokenizer.from_tiktoken(folder + "/tokenizer.tiktoken", pretokenizer=kind)
    encode = lambda batch: tokenizer.encode_batch(batch, parallel=False)
else:
    sys.path.insert(0, root)
    from pathlib import Path
    from jaxchat.tokenizer import Tokenizer
    tokenizer = Tokenizer.load(Path(folder))
    if who == "tiktoken":
        tokenizer = tokenizer.to_tiktoken()
        encode = lambda batch: [tokenizer.encode_ordinary(text) for text in batch]
    else:
        encode = lambda batch: tokenizer.encode_batch(batch, threads=int(threads))
encode(["a first call may set things up"])
for _ in sys.stdin:
    wall, cpu = time.perf_counter(), time.process_time()
    for start in range(0, len(texts), 1024):
        encode(texts[start : start + 1024])
    found = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "bytes": size}
    print(json.dumps(found), flush=True)
"""


def main() -> int:
    """Runs what was asked for and prints a line for each encoder."""
    args = parse()
    print(f"{processor()}, {cores()} cores; {args.turns} turns")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        texts = list(TextFiles([args.text]))
        for name in args.patterns:
            train_tokenizer(texts, 32_768, PATTERNS[name]).save(work / name)
        kinds = adversarial() if args.adversarial else {"text": texts}
        for kind, some in kinds.items():
            path = work / "text.jsonl"
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in some))
            for name in args.patterns:
                compare(args, work / name, name, path, kind)
    return 0


def parse() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--text", required=True, help="file or folder of texts")
    parser.add_argument("--before", help="a checkout with an earlier build")
    parser.add_argument("--gigatoken", help="the python of an environment with gigatoken")
    parser.add_argument("--tiktoken", action="store_true", help="measure it, too (slow)")
    parser.add_argument("--patterns", nargs="+", default=list(PATTERNS), choices=list(PATTERNS))
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--fresh", action="store_true", help="a new process in every turn")
    parser.add_argument("--adversarial", action="store_true", help="other texts than --text's")
    parser.add_argument("--threads", action="store_true", help="two threads, two processes")
    return parser.parse_args()


def adversarial() -> dict[str, list[str]]:
    """2 MB each of what caches and splitters are worst at."""
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"

    def words(alphabet: str, low: int, high: int) -> str:
        lengths = (rng.randint(low, high) for _ in range(4_000))
        return " ".join("".join(rng.choices(alphabet, k=length)) for length in lengths)

    kinds = {
        "a run of one letter": "a" * 40_000,
        "a run of spaces": " " * 40_000,
        "a run of digits": "7" * 40_000,
        "random letters": words(letters, 3, 14),
        "long random words": words(letters, 40, 90),
        "random bytes of ASCII": "".join(map(chr, rng.choices(range(9, 127), k=40_000))),
        "Cyrillic": words("абвгдежзийклмнопрстуфхцчшщъыьэюя", 3, 12),
        "Chinese": words("".join(map(chr, range(0x4E00, 0x5200))), 5, 40),
        "no-break spaces": words(letters, 1, 4).replace(" ", "\xa0"),
        "apostrophes": words("abst'", 1, 6),
        "blank lines": "word \n  \n\n" * 4_000,
    }
    return {kind: [text] * max(1, 2_000_000 // len(text.encode())) for kind, text in kinds.items()}


class Encoder:
    """A child that encodes when it is asked to."""

    def __init__(self, args: argparse.Namespace, who: str, folder: Path, name: str, path: Path,
                 threads: int = 1, part: int = 0, parts: int = 1) -> None:  # fmt: skip
        python = args.gigatoken if who == GIGATOKEN else sys.executable
        root = args.before if who == BEFORE else str(ROOT)
        shares = [str(threads), str(part), str(parts)]
        command = [python, "-c", CHILD, who, root, str(folder), name, str(path), *shares]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def ask(self) -> None:
        """Lets it begin."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, float]:
        """Waits for it. Raises SystemExit when it has failed."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"an encoder has failed: {self.process.args!r}"[:2_000])
        found: dict[str, float] = json.loads(line)
        return found

    def close(self) -> None:
        """Ends it."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def compare(args: argparse.Namespace, folder: Path, name: str, path: Path, kind: str) -> None:
    """Measures one pattern on some texts."""
    print(f"\n{kind}, pattern {name}", flush=True)
    if args.threads:
        return compare_threads(args, folder, name, path)
    named = {BEFORE: args.before, GIGATOKEN: args.gigatoken, TIKTOKEN: args.tiktoken}
    everyone = [OURS, *(who for who, asked in named.items() if asked)]
    kept = {} if args.fresh else {w: Encoder(args, w, folder, name, path) for w in everyone}
    speeds: dict[str, list[float]] = {who: [] for who in everyone}
    for turn in range(args.turns + (not args.fresh)):
        for who in everyone:
            encoder = kept.get(who) or Encoder(args, who, folder, name, path)
            encoder.ask()
            found = encoder.answer()
            if args.fresh:
                encoder.close()
            elif turn == 0:
                continue  # every text is new
            speeds[who].append(found["bytes"] / found["cpu"] / 1e6)
    for encoder in kept.values():
        encoder.close()
    ours = statistics.median(speeds[OURS])
    for who, found_speeds in speeds.items():
        median = statistics.median(found_speeds)
        spread = f"{min(found_speeds):.1f} to {max(found_speeds):.1f}"
        print(
            f"{who:10} {median:7.1f} MB/s ({spread}); ours is {ours / median:.2f} times", flush=True
        )


def compare_threads(args: argparse.Namespace, folder: Path, name: str, path: Path) -> None:
    """Two threads of one process beside two processes of one thread with half the texts each."""
    threads = Encoder(args, OURS, folder, name, path, threads=2)
    halves = [Encoder(args, OURS, folder, name, path, part=part, parts=2) for part in range(2)]
    ratios = []
    for turn in range(args.turns + 1):
        seconds = []
        for group in ([threads], halves):
            began = time.perf_counter()
            for encoder in group:
                encoder.ask()
            for encoder in group:
                encoder.answer()
            seconds.append(time.perf_counter() - began)
        ratios += [seconds[0] / seconds[1]] if turn else []
    for encoder in (threads, *halves):
        encoder.close()
    print(f"two threads take {statistics.median(ratios):.3f} times as long as two processes "
          f"({min(ratios):.3f} to {max(ratios):.3f})")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
