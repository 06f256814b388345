"""Prompts whose tokens are scored: the queue of a model, worked off by the scheduler's thread.

Prompts of all requests that wait share batches, through the evaluator's path: none is sampled, and
none takes a slot.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from jaxchat.evals.model import EvalModel
from jaxchat.evals.token_scores import TokenScores, score_tokens
from jaxchat.model.backend import backend
from jaxchat.serve.schema import MAX_LOGPROBS, ApiError

log = logging.getLogger("jaxchat.serve")

Prompt = Sequence[int]


def _future() -> asyncio.Future[ApiError | None]:
    return asyncio.get_running_loop().create_future()


@dataclass(eq=False)
class PendingScores:
    """Prompts of one request, and their scores as they come; made in the server's loop."""

    prompts: Sequence[Prompt]
    likeliest: int  # ids that are wanted in each token's place, at most MAX_LOGPROBS
    found: list[TokenScores] = field(default_factory=list)  # of the first prompts
    taken: int = 0  # prompts that are computed or done
    _end: asyncio.Future[ApiError | None] = field(default_factory=_future)

    def post(self, error: ApiError | None) -> None:
        """Says that all scores are there, or why they are not; in the server's loop only."""
        if not self._end.done():
            self._end.set_result(error)

    async def scores(self) -> list[TokenScores]:
        """The scores of all prompts. Raises ApiError, also if the client leaves."""
        error = await self._end
        if error is not None:
            raise error
        return self.found


class ScoringQueue:
    """What waits for scores of one model. Its methods but `compute` are called under a lock."""

    def __init__(self, model: EvalModel | None) -> None:
        self._model = model
        self._waiting: list[PendingScores] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[PendingScores]:
        return iter(list(self._waiting))

    def push(self, pending: PendingScores) -> None:
        """Puts a request behind the others."""
        self._waiting.append(pending)

    def remove(self, pending: PendingScores) -> bool:
        """Takes a request out; False when it does not wait."""
        if pending not in self._waiting:
            return False
        self._waiting.remove(pending)
        return True

    def take(self) -> list[tuple[PendingScores, Prompt]]:
        """The next prompts: about one batch, so that answers under way wait no longer for it."""
        room = backend().eval_tokens
        batch: list[tuple[PendingScores, Prompt]] = []
        for pending in self._waiting:
            while pending.taken < len(pending.prompts):
                prompt = pending.prompts[pending.taken]
                if batch and len(prompt) > room:
                    return batch
                room -= len(prompt)
                batch.append((pending, prompt))
                pending.taken += 1
        return batch

    def compute(
        self, batch: Sequence[tuple[PendingScores, Prompt]]
    ) -> dict[PendingScores, ApiError | None]:
        """Computes a batch; the requests that have ended, with the error where there is one."""
        few = all(pending.likeliest <= 1 for pending, _ in batch)
        try:
            assert self._model is not None, "the model was opened without an evaluator's"
            found = score_tokens(
                [prompt for _, prompt in batch], self._model, likeliest=1 if few else MAX_LOGPROBS
            )
        except Exception:
            log.exception("scoring prompts failed")
            error = ApiError(500, "the model failed on these prompts.", code="engine_failed")
            return {pending: error for pending, _ in batch}
        for (pending, _), scores in zip(batch, found, strict=True):
            pending.found.append(scores)
        ended = {pending for pending, _ in batch if len(pending.found) == len(pending.prompts)}
        return dict.fromkeys(ended)
