"""Sets jaxchat up and starts it; needs nothing but Python 3.11 or newer, pip and Rust.

python3 bootstrap.py run [ARGUMENTS]     run_speedrun.py, by default --tier cpu
python3 bootstrap.py test [ARGUMENTS]    all checks and tests; ARGUMENTS go to pytest

The first time it makes `.venv`, installs jaxchat with what it needs and builds its Rust extension;
`test` adds what tests need. After that nothing is installed, and no network is needed, until
pyproject.toml, constraints.txt or the Rust sources change.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
# Here, because an older Python would stumble over the definitions below.
if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(
        f"jaxchat needs Python 3.11 or newer, and this is {VERSION}: install one (python.org), "
        "then give the same command with it, for example python3.12 bootstrap.py run"
    )

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "jaxchat-installed"
CRATE = "bpe_rs/Cargo.toml"
WITHOUT_TESTS = "without what tests need"  # a line of STAMP
MOST_WORKERS = 4  # of pytest: each may take 3 GB
HEARTBEAT = 10  # seconds after which a silent step says that it is still at work


def main(arguments: list[str]) -> int:
    """Installs if need be and starts what was asked for; returns its exit code."""
    if not arguments or arguments[0] not in ("run", "test"):
        asked_for_help = arguments in (["-h"], ["--help"])
        print(__doc__, file=sys.stdout if asked_for_help else sys.stderr)
        return 0 if asked_for_help else 2
    what, rest = arguments[0], arguments[1:]
    os.chdir(ROOT)
    for_tests = what == "test" or has_tests()
    up_to_date = is_installed(for_tests=for_tests)
    if what == "test" or not up_to_date:
        find_cargo()
    if not up_to_date:
        install(for_tests=for_tests)
    if what == "test":
        return test(rest)
    if not any(argument.startswith("--tier") or argument in ("-h", "--help") for argument in rest):
        rest = ["--tier", "cpu", *rest]
    sys.stdout.flush()
    # In place of this process, so that signals and the exit code need no passing on.
    os.execv(PYTHON, [str(PYTHON), "run_speedrun.py", *rest])


def find_cargo() -> None:
    """Leaves with a sentence when there is no cargo on PATH, nor where rustup puts it."""
    path = [os.environ.get("PATH", os.defpath), str(Path("~/.cargo/bin").expanduser())]
    os.environ["PATH"] = os.pathsep.join(filter(None, path))
    if not shutil.which("cargo"):
        sys.exit(
            "jaxchat needs Rust to build its tokenizer, and there is no cargo on PATH: install "
            "Rust from rustup.rs, then give the same command again."
        )


def fingerprint() -> tuple[str, str]:
    """What `.venv` itself depends on, and a hash of what decides what is installed in it."""
    files = [ROOT / "pyproject.toml", ROOT / "constraints.txt", ROOT / "bpe_rs" / "Cargo.lock"]
    files += [ROOT / CRATE, *sorted((ROOT / "bpe_rs" / "src").glob("**/*.rs"))]
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return f"Python {VERSION} for {ROOT}", digest.hexdigest()


def installed() -> tuple[str, ...]:
    """The fingerprint of the installation that is there; empty when there is none."""
    return tuple(STAMP.read_text().splitlines()) if STAMP.exists() and PYTHON.exists() else ()


def has_tests() -> bool:
    """Whether `.venv` has what tests need."""
    return bool(installed()) and WITHOUT_TESTS not in installed()


def is_installed(*, for_tests: bool) -> bool:
    """Whether `.venv` was made from what stands here now, and the extension is there."""
    current = installed()[:2] == fingerprint() and (has_tests() or not for_tests)
    return current and any((ROOT / "jaxchat").glob("_bpe*.so"))


def install(*, for_tests: bool) -> None:
    """Makes `.venv` and installs into it; leaves with a sentence when that fails.

    Rust builds the extension while packages are fetched and unpacked.
    """
    began = time.monotonic()
    print("Setting up .venv (once; about a minute)", flush=True)
    fresh = installed()[:1] != fingerprint()[:1]
    if fresh and patiently([sys.executable, "-m", "venv", "--clear", str(VENV)]):
        sys.exit(
            "Python could not make a virtual environment (see above): its venv and pip modules are "
            "needed; on Debian and Ubuntu, apt install python3-venv. Then give the command again."
        )
    pip = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check"]
    pip += ["--constraint", "constraints.txt"]
    packages = [*pip, *needed("dev" if for_tests else "structured")]
    if patiently([*pip, "--no-deps", "--editable", "."], packages):
        sys.exit(
            "Installing failed (see above). It needs the network this once; nothing was lost: give "
            "the same command again."
        )
    STAMP.write_text("\n".join([*fingerprint(), *([] if for_tests else [WITHOUT_TESTS])]))
    print(f"Set up in {time.monotonic() - began:.0f}s", flush=True)


def needed(extra: str) -> list[str]:
    """The packages of pyproject.toml that jaxchat needs, and those of an extra."""
    import tomllib  # an older Python, which gets a sentence, has none

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *project["optional-dependencies"][extra]]


def patiently(*commands: list[str]) -> int:
    """Runs commands side by side, says every ten seconds that they are still at work.

    Returns an exit code that is not 0, where there is one, and ends the others then.
    """
    began = time.monotonic()
    processes = [subprocess.Popen(command) for command in commands]
    said = began
    while True:
        try:
            codes = [process.poll() for process in processes]
            if any(codes) or None not in codes:
                break
            time.sleep(0.05)
            if time.monotonic() - said >= HEARTBEAT:
                said = time.monotonic()
                print(f"... still at work ({said - began:.0f}s)", flush=True)
        except KeyboardInterrupt:
            for process in processes:
                process.wait()  # it was interrupted too
            sys.exit("Interrupted; give the same command again.")
    for process in processes:
        if process.poll() is None:
            process.terminate()
            process.wait()
    return next(filter(None, codes), 0)


def test(arguments: list[str]) -> int:
    """Formatting, types, lints and tests. Returns 0 when all passed.

    What takes long runs beside pytest, whose tests often wait, and says after it what it found.
    """
    os.environ["PYO3_PYTHON"] = str(PYTHON)
    python = [str(PYTHON), "-m"]
    crate = ["--manifest-path", CRATE]
    brief = {
        "ruff check": [*python, "ruff", "check", "."],
        "ruff format": [*python, "ruff", "format", "--check", "."],
        "cargo fmt": ["cargo", "fmt", *crate, "--check"],
    }
    long = {
        "mypy": [*python, "mypy"],
        "cargo clippy": [
            *("cargo", "clippy", *crate, "--locked", "--all-targets", "--features", "python"),
            *("--", "-D", "warnings"),
        ],
        "cargo test": ["cargo", "test", *crate, "--locked", "--quiet"],
    }
    for name in ("fmt", "clippy"):
        if not has_component(name):
            print(f"== cargo {name}: skipped, not installed (rustup component add {name})")
            (brief if name == "fmt" else long).pop(f"cargo {name}")
    failed = []
    for name, command in brief.items():
        print(f"== {name}", flush=True)
        if patiently(command):
            failed.append(name)
    print(f"== pytest; beside it {', '.join(long)}", flush=True)
    # Tests mostly compile, on one core each; those of a file share what they compiled.
    # The long ones come first (tests/conftest.py), which xdist would undo.
    count = str(min(os.cpu_count() or 1, MOST_WORKERS))
    workers = ["-n", count, "--dist", "loadfile", "--no-loadscope-reorder"]
    with ThreadPoolExecutor(1) as beside:
        try:
            found = {name: beside.submit(captured, command) for name, command in long.items()}
            code = subprocess.call([*python, "pytest", *workers, *arguments])
            for name, check in found.items():
                done = check.result()
                print(f"== {name}", done.stdout.rstrip(), sep="\n", flush=True)
                if done.returncode:
                    failed.append(name)
        finally:
            beside.shutdown(cancel_futures=True)
    if failed:
        print(f"Failed besides pytest: {', '.join(failed)}", file=sys.stderr)
    return code or int(bool(failed))


def captured(command: list[str]) -> "subprocess.CompletedProcess[str]":
    """The command, when it has ended, with all that it said."""
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def has_component(name: str) -> bool:
    """Whether `cargo NAME` is there."""
    return not subprocess.run(["cargo", name, "--version"], capture_output=True).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
