"""Records some steps of a training stage: an XLA trace, the step's optimised HLO, and the facts.

FOLDER/plugins/profile/DATE/HOST.xplane.pb          what XProf and `jaxchat profile` read
FOLDER/plugins/profile/DATE/perfetto_trace.json.gz  what ui.perfetto.dev reads
FOLDER/step.hlo.txt, FOLDER/profile.json            the compiled step; what was recorded

On a GPU, the recorded steps run in a program of their own, without command buffers: it is compiled
before the trace begins, by every process, since XLA tunes its kernels in all of them together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxchat.config.derive import flops_per_token
from jaxchat.config.schema import ModelConfig
from jaxchat.model.backend import backend
from jaxchat.paths import atomic_folder, atomic_open, write_json
from jaxchat.train.profiling.request import HLO, RECORD, Request

FORMAT = "jaxchat-profile-1"
StepFn = Callable[[Any, Any], tuple[Any, Any]]  # (state, batch) -> (state, metrics)


@dataclass(frozen=True)
class Capture:
    """The steps of one stage to record, and the folder of the recording."""

    request: Request
    stage: str
    folder: Path
    model: ModelConfig


def recorded(
    step_fn: StepFn, capture: Capture | None, first: int
) -> contextlib.AbstractContextManager[StepFn]:
    """Opens a step function that counts its calls from `first` and records those asked for.

    Without a capture that is `step_fn` itself. On leaving, prints the profile's folder, or that
    there is none because the steps did not come. A recording cut short leaves nothing.
    """
    if capture is None or (jax.process_index() != 0 and not backend().traced):
        return contextlib.nullcontext(step_fn)
    return contextlib.closing(_Recorder(step_fn, capture, first))


class _Recorder:
    def __init__(self, step_fn: StepFn, capture: Capture, first: int) -> None:
        self._step_fn, self._capture, self._next = step_fn, capture, first
        self._options = dict(backend().traced) or None
        self._leads = jax.process_index() == 0  # the others only run the same program
        self._programs: dict[Any, Any] = {}  # shapes of a batch -> the compiled step
        self._open = contextlib.ExitStack()  # holds the folder while steps are recorded
        self._folder: Path | None = None
        self._done = False

    def __call__(self, state: Any, batch: Any) -> tuple[Any, Any]:
        step, request = self._next, self._capture.request
        self._next += 1
        if step >= request.stop or self._done:
            return self._step_fn(state, batch)
        if self._options is not None and step < request.start:
            return self._step_fn(state, batch)
        # Compiled before its first call, which then finds the program: it is not compiled twice.
        program = self._compiled(state, batch)
        if step == request.start:
            self._start(state)
        with jax.profiler.StepTraceAnnotation(self._capture.stage, step_num=step):
            step_fn = self._step_fn
            if self._options:
                step_fn = step_fn.through(program)  # type: ignore[attr-defined]
            result = step_fn(state, batch)
        if step == request.stop - 1 and self._folder is not None:
            jax.block_until_ready(result)
            self._finish(program, batch)
        return result

    def _compiled(self, state: Any, batch: Any) -> Any:
        """The step for batches of this shape, with the options for steps that are recorded."""
        shapes = tuple(x.shape for x in jax.tree.leaves(batch))
        if shapes not in self._programs:
            lowered = self._step_fn.lower(state, batch)  # type: ignore[attr-defined]
            self._programs[shapes] = lowered.compile(self._options)
        return self._programs[shapes]

    def _start(self, state: Any) -> None:
        if not self._leads:
            return
        jax.block_until_ready(state)  # what was dispatched before does not belong to it
        self._folder = self._open.enter_context(atomic_folder(self._capture.folder))
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # every Python call, or none: it would slow the host down
        jax.profiler.start_trace(self._folder, create_perfetto_trace=True, profiler_options=options)

    def _finish(self, program: Any, batch: Any) -> None:
        folder, self._folder = self._folder, None
        assert folder is not None
        jax.profiler.stop_trace()
        with atomic_open(folder / HLO) as file:
            file.write(program.as_text())
        write_json(folder / RECORD, self._facts(batch))
        self._open.close()
        self._done = True

    def _facts(self, batch: Any) -> dict[str, Any]:
        accumulation, rows, row_tokens = batch["tokens"].shape
        device = jax.devices()[0]
        return {
            "format": FORMAT,
            "stage": self._capture.stage,
            "start": self._capture.request.start,
            "stop": self._capture.request.stop,
            "step_tokens": accumulation * rows * (row_tokens - 1),
            "flops_per_token": flops_per_token(self._capture.model),
            "devices": jax.device_count(),
            "device_kind": device.device_kind,
            "platform": device.platform,
        }

    def close(self) -> None:
        """Discards a recording that was cut short; prints the outcome."""
        if not self._leads:
            return
        request, stage = self._capture.request, self._capture.stage
        if self._folder is not None:
            jax.profiler.stop_trace()
            with contextlib.suppress(InterruptedError), self._open:
                raise InterruptedError  # the temporary folder goes
        if self._done:
            folder = self._capture.folder
            print(f"profile of {stage}, steps {request.steps}: {folder}", flush=True)
            print(f"  where its time went: jaxchat profile {folder}", flush=True)
        else:
            print(
                f"no profile of {stage}: it was to record steps {request.steps}, and this process "
                f"did not make them all (it stands at step {self._next}).",
                flush=True,
            )
