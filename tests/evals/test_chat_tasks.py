"""Chat tasks: what is counted of answers that are written here instead of sampled."""

import itertools
from types import SimpleNamespace

import pytest

from jaxchat.evals.chat import Sampling, evaluate_task
from jaxchat.inference.request import Completion
from jaxchat.tasks.base import GeneratedTask, Problem, say
from jaxchat.tokenizer import Tokenizer

TOKENIZER = Tokenizer([bytes([byte]) for byte in range(256)])
PROBLEMS = 3


class Numbers(GeneratedTask):
    name = "numbers"

    def draw(self, rng):
        number = str(rng.randrange(1_000))
        return Problem(self.name, number, say(f"Say {number}.", number), number)


def completion_of(pieces):
    """A completion of texts and special tokens."""
    ids = [
        [TOKENIZER.special(piece)] if piece.startswith("<|") else TOKENIZER.encode(piece)
        for piece in pieces
    ]
    tokens = tuple(itertools.chain(*ids))
    return Completion(tokens, (1,) * len(tokens), (0.0,) * len(tokens), "stop")


def evaluate(samples, answer):
    """The result where sample n of problem i is the pieces `answer(reference, i, n)`."""
    task = Numbers(seed=0)

    def generate(requests):
        assert {request.n for request in requests} == {samples}
        right = [task.problem("test", number).answer for number in range(len(requests))]
        return [
            [completion_of(answer(text, number, sample)) for sample in range(samples)]
            for number, text in enumerate(right)
        ]

    engine = SimpleNamespace(max_len=256, generate=generate)
    sampling = Sampling(max_tokens=16, samples=samples, temperature=1.0)
    return evaluate_task(engine, TOKENIZER, task, problems=PROBLEMS, sampling=sampling, title="")


def test_of_several_samples_all_count_and_pass_at_k_is_for_powers_of_two():
    right_of = (4, 1, 0)  # of the four samples of each problem

    def answer(right, problem, sample):
        return [right if sample < right_of[problem] else "no"]

    result = evaluate(4, answer)
    assert (result.score.right, result.score.total) == (5, 12)
    assert result.pass_at == {2: pytest.approx((1 + 1 / 2 + 0) / 3), 4: pytest.approx(2 / 3)}
    assert {"pass@2", "pass@4"} <= set(result.to_json())


def test_of_one_sample_the_accuracy_is_all():
    result = evaluate(1, lambda right, problem, sample: [right if problem else "no"])
    assert (result.score.right, result.score.total, result.pass_at) == (2, 3, {})


def test_calls_of_tools_are_counted_and_those_without_a_result():
    call = ["<|python_start|>", "1+1", "<|python_end|>"]
    output = ["<|output_start|>", "2", "<|output_end|>"]
    empty = ["<|output_start|>", "<|output_end|>"]
    answers = [call + output + call + output, call + empty, ["no call"]]
    result = evaluate(1, lambda right, problem, sample: answers[problem])
    assert (result.calls, result.failed_calls) == (3, 1)
