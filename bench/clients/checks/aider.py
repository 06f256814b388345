"""aider: a question about a file, without a commit."""

import os
import subprocess
from pathlib import Path


def _run(s, *words):
    done = subprocess.run(
        [Path(s.environment) / "bin" / "aider", "--model", f"openai/{s.long}",
         "--openai-api-base", s.url, "--openai-api-key", "none", "--no-git", "--yes-always",
         "--no-check-update", "--no-analytics",
         "--no-show-model-warnings", "--no-pretty", "--map-tokens", "0", "--no-detect-urls",
         "--chat-mode", "ask", *words],
        capture_output=True, text=True, cwd=s.folder, env=os.environ, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-600:] + done.stderr[-600:]
    return done.stdout
