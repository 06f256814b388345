"""Answers that follow a grammar: random schemas, throughput, and the time of a mask.

    python bench/structured.py schemas            # 1,000 random schemas, a tiny random model
    python bench/structured.py masks                       # microseconds a mask, 65,536 ids
    python bench/structured.py speed --home HOME           # cpu/rl of a home, or without it a d12

`schemas` needs a validator beside ours: `pip install jsonschema-rs` (the dev extra has it).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np

from jaxchat.config.derive import derive_model
from jaxchat.config.huge_pages import restart_with_huge_pages
from jaxchat.config.schema import ModelConfig
from jaxchat.inference.engine import Engine, Request
from jaxchat.inference.grammar import GrammarError
from jaxchat.model.gpt import init_params
from jaxchat.serve.json_schema import FORMATS, SchemaError
from jaxchat.serve.response_format import JSON_OBJECT, schema_grammar
from jaxchat.tokenizer import Tokenizer, train_tokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "active": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "age", "active", "tags"],
}
WORDS = "name age tags id street city price count notes when kind parent size color rank".split()
PATTERNS = ("^[a-z]+$", "^[A-Z]{2}-[0-9]{3,5}$", "[0-9]", "^(red|green|blue)+$", "^x.*y$", "a|b")


class SchemaMaker:
    """Random schemas of the keywords that are enforced."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def root(self) -> dict:
        schema = self.object(3) if self.rng.random() < 0.8 else self.any(3)
        if self.rng.random() < 0.2:
            schema = {**schema, "$defs": {"node": self.node()}}
            if "properties" in schema:
                schema["properties"]["tree"] = {"$ref": "#/$defs/node"}
        return schema

    def node(self) -> dict:
        nexts = {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}
        properties = {"value": self.scalar(), "next": nexts}
        return {"type": "object", "properties": properties, "required": ["value", "next"]}

    def any(self, depth: int) -> dict:
        makers = [self.scalar] * 5
        if depth:
            makers += [lambda: self.object(depth - 1), lambda: self.array(depth - 1)]
            makers += [lambda: self.union(depth - 1)]
        return self.rng.choice(makers)()

    def object(self, depth: int) -> dict:
        rng = self.rng
        names = rng.sample(WORDS, rng.randint(1, 5))
        schema = {
            "type": "object",
            "title": "An object",
            "properties": {name: self.any(depth) for name in names},
            "required": [name for name in names if rng.random() < 0.7],
        }
        draw = rng.random()
        if draw < 0.3:
            schema["additionalProperties"] = draw < 0.1
        elif draw < 0.4:
            counts = {"minProperties": rng.randint(0, 1), "maxProperties": rng.randint(2, 4)}
            return {"type": "object", "additionalProperties": self.any(depth), **counts}
        elif draw < 0.45:
            return {"type": "object", "patternProperties": {"^x_": self.any(depth)},
                    "additionalProperties": False}  # fmt: skip
        return schema

    def array(self, depth: int) -> dict:
        least = self.rng.randint(0, 2)
        schema = {"type": "array", "items": self.any(depth)}
        if self.rng.random() < 0.6:
            schema |= {"minItems": least, "maxItems": least + self.rng.randint(0, 3)}
        if self.rng.random() < 0.2:
            schema |= {"prefixItems": [self.scalar(), self.scalar()], "items": False}
            schema.pop("minItems", None), schema.pop("maxItems", None)
        return schema

    def union(self, depth: int) -> dict:
        if self.rng.random() < 0.3:
            return {"oneOf": [{"type": "integer"}, {"type": "string"}, {"type": "null"}]}
        if self.rng.random() < 0.2:
            return {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 40}]}
        return {"anyOf": [self.any(depth) for _ in range(self.rng.randint(2, 3))]}

    def scalar(self) -> dict:
        return self.rng.choice([self.string, self.string, self.number, self.constant])()

    def string(self) -> dict:
        rng = self.rng
        least = rng.randint(0, 5)
        return rng.choice([
            {"type": "string"}, {"type": "string", "description": "free"},
            {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 20)},
            {"type": "string", "pattern": rng.choice(PATTERNS)},
            {"type": "string", "format": rng.choice(FORMATS)},
        ])  # fmt: skip

    def number(self) -> dict:
        rng = self.rng
        low = rng.choice([rng.randint(-1000, 1000), round(rng.uniform(-10, 10), 2)])
        schema = {"type": rng.choice(["integer", "number"])}
        draw = rng.random()
        if draw < 0.3:
            return schema | {"minimum": low, "maximum": low + rng.randint(1, 500)}
        if draw < 0.4:
            return schema | {"exclusiveMinimum": low}
        if draw < 0.5:
            return {"type": "integer", "multipleOf": rng.randint(2, 50)}
        return schema

    def constant(self) -> dict:
        values = [None, True, "red", 'a "quoted" text', "Zoë", 3, -0.5, 10**12, ["x", 1], {"k": 2}]
        if self.rng.random() < 0.2:
            return {"const": self.rng.choice(values)}
        if self.rng.random() < 0.3:
            return {"type": self.rng.choice(["boolean", "null"])}
        return {"enum": self.rng.sample(values, self.rng.randint(1, 4))}


def tiny(context: int) -> tuple[dict, ModelConfig, Tokenizer]:
    """A model with random weights and a small vocabulary."""
    text = ['{"name": "one of the others", "age": 12.5, "tags": [true, null]} and the rest. '] * 30
    tokenizer = train_tokenizer(text, 400)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, sequence_len=context, n_layer=2,
                         n_head=2, n_kv_head=2, n_embd=32)  # fmt: skip
    params = init_params(jax.random.key(0), config)
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape), params)
    return params, config, tokenizer


def schemas(count: int, seed: int, tokens: int) -> None:
    import jsonschema_rs

    params, config, tokenizer = tiny(context=tokens + 8)
    engine = Engine(params, config, tokenizer, slots=16)
    maker, made, refused = SchemaMaker(seed), [], Counter()
    began = time.perf_counter()
    for _ in range(count):
        schema = maker.root()
        try:
            made.append((schema, schema_grammar(schema).compile(tokenizer)))
        except (SchemaError, GrammarError) as error:
            refused[str(error)[:90]] += 1
    compiled = time.perf_counter() - began
    requests = [
        Request((tokenizer.bos,), max_tokens=tokens, temperature=1.0, seed=number, grammar=grammar)
        for number, (_, grammar) in enumerate(made)
    ]
    answers = [one for (one,) in engine.generate(requests)]
    ended = wrong = 0
    for (schema, _), answer in zip(made, answers, strict=True):
        if answer.finish_reason != "stop":
            continue
        ended += 1
        text = tokenizer.decode(answer.tokens[:-1])
        valid = jsonschema_rs.validator_for(schema, validate_formats=True).is_valid(
            json.loads(text)
        )
        if not valid:
            wrong += 1
            print("invalid:", json.dumps(schema)[:300], text[:200])
    print(f"{count} schemas (seed {seed}): {len(made)} accepted in {compiled:.2f} s; "
          f"{ended} answers end with stop, of which {wrong} are invalid")  # fmt: skip
    for message, times in refused.most_common(8):
        print(f"  refused {times}: {message}")
    for (schema, _), answer in [(m, a) for m, a in zip(made, answers, strict=True)
                                if a.finish_reason != "stop"][:8]:  # fmt: skip
        print("  length:", json.dumps(schema)[:150], "|", tokenizer.decode(answer.tokens)[:80])


def big_tokenizer() -> Tokenizer:
    """65,536 ids, trained on Python sources of this machine."""
    folders = (Path(json.__file__).parents[1], Path(np.__file__).parents[1])
    files = sorted(path for folder in folders for path in folder.rglob("*.py"))[:4_000]
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in files)
    return train_tokenizer(texts, 65_536)


def masks(tokenizer: Tokenizer) -> None:
    """Walks answers that are drawn at random from what is allowed; times masks and what follows."""
    maker, rng = SchemaMaker(0), np.random.default_rng(0)
    fills, steps = [], []
    words = np.zeros(-(-tokenizer.vocab_size // 32), np.uint32)
    grammars = [schema_grammar(PERSON), JSON_OBJECT]
    while len(grammars) < 100:
        with contextlib.suppress(SchemaError):
            grammars.append(schema_grammar(maker.root()))
    for grammar in grammars:
        try:
            matcher = grammar.compile(tokenizer).matcher()
        except GrammarError:
            continue
        matcher.begin()
        for left in range(300, 0, -1):
            began = time.perf_counter()
            matcher.fill(words)
            fills.append(time.perf_counter() - began)
            bits = np.unpackbits(words.view(np.uint8), bitorder="little")
            token = int(rng.choice(np.flatnonzero(bits)))
            began = time.perf_counter()
            taken, _ = matcher.advance(token, left)
            steps.append(time.perf_counter() - began)
            if taken == matcher.vocabulary.end or matcher.failed:
                break
    for name, seconds in (("mask", fills), ("advance", steps)):
        micro = 1e6 * np.array(seconds)
        print(f"{name}: median {np.median(micro):.1f} us, p99 {np.percentile(micro, 99):.0f} us, "
              f"max {micro.max():.0f} us of {len(micro)}, V={tokenizer.vocab_size}")  # fmt: skip


class Company:
    """Rows in an engine of 8 slots, of which none ends while it is looked at."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, tokens: int) -> None:
        self.engine = engine
        self.grammar = schema_grammar(PERSON).compile(tokenizer)
        rng = np.random.default_rng(0)
        prompts = rng.integers(0, 256, (32, 8)).tolist()
        self.rows = {
            kind: self._long([
                Request((tokenizer.bos, *prompt), tokens, temperature=1.5, seed=seed, grammar=held)
                for seed, prompt in enumerate(prompts)
            ])
            for kind, held in (("f", None), ("g", self.grammar))
        }  # fmt: skip

    def _long(self, requests: list[Request]) -> list[Request]:
        """The 8 with the longest answers."""
        lengths = [len(one.tokens) for (one,) in self.engine.generate(requests)]
        order = np.argsort([-length for length in lengths], kind="stable")[:8]
        return [requests[place] for place in order]

    def rate(self, kinds: str, counted: int) -> float:
        """Tokens a second of the first `counted` rows, until any row ends.

        `kinds`: "f" a row without a grammar, "g" one with.
        """
        jobs = [self.engine.submit(self.rows[kind][place]) for place, kind in enumerate(kinds)]
        rows = [job.rows[0] for job in jobs]
        self.engine.step()  # reads the prompts
        before = sum(len(row.tokens) for row in rows[:counted])
        began = time.perf_counter()
        while not any(job.done for job in jobs):
            self.engine.step()
        seconds = time.perf_counter() - began
        made = sum(len(row.tokens) for row in rows[:counted]) - before
        for job in jobs:
            self.engine.cancel(job)
        return made / seconds


def speed(engine: Engine, tokenizer: Tokenizer, tokens: int, repeats: int) -> None:
    company = Company(engine, tokenizer, tokens)
    cases = {"8 free": ("f" * 8, 8), "8 grammar": ("g" * 8, 8),
             "4 beside 4 free": ("f" * 8, 4), "4 beside 4 grammar": ("ffffgggg", 4)}  # fmt: skip
    rates: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats + 1):  # the first compiles
        for name, case in cases.items():
            rates[name].append(company.rate(*case))
    for which, value in (("median", statistics.median), ("best", max)):
        found = {name: value(values[1:]) for name, values in rates.items()}
        print(f"{which} of {repeats}, tokens/s: {found}")
        held = found["8 grammar"] / found["8 free"]
        beside = found["4 beside 4 grammar"] / found["4 beside 4 free"]
        print(f"  8 rows with a grammar: {held:.3f} of without; 4 beside 4 with one: {beside:.3f}")


def home_engine(home: Path, run: str, stage: str) -> tuple[Engine, Tokenizer]:
    from jaxchat.model.capabilities import inference_compute
    from jaxchat.runs.opening import find_model, load_model
    from jaxchat.runs.run_tokenizer import tokenizer_of

    context, chosen = find_model(home, run, stage)
    model, tokenizer = context.config.model, tokenizer_of(context)
    params = load_model(context.root, chosen, model)
    compute = inference_compute(context.config.compute, model)
    return Engine(params, model, tokenizer, slots=8, compute=compute), tokenizer


def random_engine(depth: int, preset: str) -> tuple[Engine, Tokenizer]:
    from jaxchat.config.schema import ComputeConfig
    from jaxchat.model.capabilities import inference_compute

    tokenizer = big_tokenizer()
    model = derive_model(depth, preset, tokenizer.vocab_size, 1024)
    params = init_params(jax.random.key(0), model)
    noise = jax.random.key(1)  # a head of zeros would give all tokens one probability
    params = jax.tree.map(lambda x: x + 0.02 * jax.random.normal(noise, x.shape, x.dtype), params)
    compute = inference_compute(ComputeConfig(), model)
    return Engine(params, model, tokenizer, slots=8, max_len=512, compute=compute), tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("schemas", "masks", "speed"))
    parser.add_argument("--count", type=int, default=1_000, help="schemas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=200, help="of an answer at most")
    parser.add_argument("--home", type=Path, help="of jaxchat, with the run cpu; else a random d12")
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--preset", default="modern")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if args.what == "schemas":
        schemas(args.count, args.seed, args.tokens)
    elif args.what == "masks":
        masks(big_tokenizer())
    else:
        home = args.home and home_engine(args.home, "cpu", "rl")
        engine, tokenizer = home or random_engine(args.depth, args.preset)
        speed(engine, tokenizer, args.tokens, args.repeats)


if __name__ == "__main__":
    restart_with_huge_pages()
    main()
