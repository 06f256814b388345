"""What this machine offers to any tier: versions, devices, how they compute, the sandbox."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import re
import sys
import warnings
from pathlib import Path

from jaxchat.config import huge_pages
from jaxchat.config.machine import cores, free_memory_bytes, memory_bytes, processor
from jaxchat.config.schema import RunConfig
from jaxchat.errors import ConfigError, explain, first_line
from jaxchat.runs import provenance, run_dir
from jaxchat.runs.doctor.check import Check
from jaxchat.runs.tables import size

LEAST_PYTHON = (3, 11)
# What CUDA is made of, as NVIDIA's and JAX's packages are called; -cu12 or -cu13 may follow.
CUDA = ("jax-cuda", "nvidia-cuda-runtime", "nvidia-cudnn", "nvidia-nccl", "nvidia-cublas")
DRIVER = Path("/proc/driver/nvidia/version")


def check_python() -> Check:
    """The interpreter."""
    version = platform.python_version()
    wrong = f"Python is {version}; install 3.11 or newer and make the virtual environment with it."
    good = sys.version_info >= LEAST_PYTHON
    return Check("python", version, () if good else (wrong,), facts={"version": version})


def check_packages() -> Check:
    """The packages that decide the results."""
    versions = provenance.versions()
    missing = [name for name, version in versions.items() if version == "missing"]
    wrong = f"{', '.join(missing)} cannot be found; run: pip install jaxchat"
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    return Check("packages", text, (wrong,) if missing else (), facts=versions)


def check_tokenizer() -> Check:
    """The Rust extension: it is loaded, not only looked for."""
    try:
        from jaxchat import _bpe
    except ImportError as error:
        wrong = (
            f"the tokenizer's Rust extension is missing ({error}); python3 bootstrap.py run makes "
            "it."
        )
        return Check("tokenizer", "the Rust extension is missing", (wrong,))
    name = Path(str(_bpe.__file__)).name
    return Check("tokenizer", name, facts={"extension": name})


def check_cuda() -> Check:
    """CUDA, cuDNN and the driver, where they are."""
    found = {}
    for part in importlib.metadata.distributions():
        name = str(part.metadata["Name"] or "").lower().replace("_", "-")
        if name.startswith(CUDA):
            found[name] = part.version
    notes: tuple[str, ...] = ()
    with contextlib.suppress(OSError):
        text = DRIVER.read_text(encoding="utf-8")
        version = re.search(r"\b\d{3}\.[\d.]+", text)
        if not any(name.startswith("jax-cuda") for name in found):
            notes = (
                "there is an NVIDIA driver, but JAX has no CUDA here; for the GPU, run: "
                'pip install "jaxchat[cuda]"',
            )
        found["driver"] = version[0] if version else "unknown"
    found = dict(sorted(found.items()))
    text = ", ".join(f"{name} {version}" for name, version in found.items())
    return Check("cuda", text or "none", notes=notes, facts=found)


def check_devices() -> Check:
    """JAX's devices and their memory. Starts JAX."""
    import jax

    from jaxchat.model.backend import device_memory

    try:
        devices = jax.devices()
    except Exception as error:  # whatever a broken driver raises is what the doctor is for
        wrong = (
            f"JAX finds no device ({first_line(error)}); see to the driver, or set "
            "JAX_PLATFORMS=cpu to run without it."
        )
        return Check("devices", "none", (wrong,))
    kinds = [f"{device.platform}: {device.device_kind}" for device in devices]
    shared = devices[0].platform == "cpu" and len(devices) > 1
    memory = device_memory(devices[0]) * (len(devices) if shared else 1)
    of = "" if shared or len(devices) == 1 else " for each"
    of += ", which is what JAX may take" if devices[0].platform == "gpu" else ""
    of += ", which they share" if shared else ""
    text = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    facts = {"devices": kinds, "memory_bytes": memory, "shared": shared}
    return Check("devices", f"{text}, {size(memory)}{of}", facts=facts)


def check_processor() -> Check:
    """The processor and the machine's memory."""
    free, whole, count = free_memory_bytes(), memory_bytes(), cores()
    facts = {
        "name": processor(), "cores": count, "memory_bytes": whole, "free_memory_bytes": free,
        "huge_pages": huge_pages.state(),
    }  # fmt: skip
    counted = "1 core" if count == 1 else f"{count} cores"
    text = f"{processor()}, {counted}; memory {size(whole)}, {size(free)} of it free"
    text += f"; {facts['huge_pages']}"
    return Check("processor", text, facts=facts)


def check_compute(config: RunConfig) -> tuple[Check, Check]:
    """How a step of the tier would compute here: attention, and XLA's options. Starts JAX."""
    import jax
    import jax.numpy as jnp

    from jaxchat.model.backend import backend
    from jaxchat.model.capabilities import choose_compute

    dtype = jnp.dtype(backend().dtype)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            chosen = choose_compute(config.compute, config.model, dtype, len(jax.devices()))
        except ConfigError as error:
            refused = Check("compiler", "not as the tier asks for it", (str(error),))
            return Check("attention", "not tried"), refused
    warned = (str(w.message) for w in said if issubclass(w.category, RuntimeWarning))
    if chosen.attention in ("cudnn", "splash"):
        why = "it worked on a trial"
    elif backend().attention == "splash":
        why = "splash does not work here, or the heads are no multiple of 128"
    elif backend().attention == "cudnn" and dtype.itemsize == 2:
        why = "cudnn was tried and does not work here"
    elif chosen.matmul == "bfloat16":
        why = "with products of bfloat16, which this processor is made for"
    else:
        why = "cudnn needs a GPU and half precision"
    named, options = str(chosen.attention), dict(chosen.options)
    attention = Check(
        "attention",
        f"{named}, in {dtype.name}: {why}",
        notes=tuple(dict.fromkeys(warned)),
        facts={"implementation": named, "dtype": dtype.name, "why": why},
    )
    accepted = ", ".join(f"{name}={value}" for name, value in options.items()) or "XLA's own"
    facts = {"options": options, "dropped": [name for name, _ in chosen.refused]}
    text = f"options accepted: {accepted}{chosen.refusals()}"
    return attention, Check("compiler", text, facts=facts)


def check_sandbox(config: RunConfig) -> Check:
    """How well programs of a model can be sandboxed."""
    from jaxchat.tools.sandbox import levels

    level = levels.detect()
    without = f"; missing: {', '.join(level.missing)}" if level.missing else ""
    refused = "; programs of a model are refused" if level.name == "none" else ""
    left_out = level.name == "none" and "humaneval" in config.eval.tasks
    notes = ("humaneval is left out of the evaluation: its programs cannot be sandboxed here.",)
    text = f"{level.name}{without}{refused}"
    return Check("sandbox", text, notes=notes if left_out else (), facts=level.to_json())


def check_home(root: Path) -> Check:
    """Whether artefacts can be written."""
    try:
        run_dir.check_writable(root)
    except OSError as error:
        explained = explain(error, root)
        sentence = explained[0].removeprefix("jaxchat: ") if explained else str(error)
        return Check("home", f"{root}, which cannot be written", (sentence,))
    names = sorted(path.parent.name for path in (root / "runs").glob(f"*/{run_dir.CONFIG}"))
    facts = {"path": str(root), "runs": names}
    return Check("home", f"{root}, runs: {', '.join(names) or 'none'}", facts=facts)
