"""guidellm, a load generator: what it asks for it must get, to the token."""

import json
import subprocess
from pathlib import Path

TOKENS = 40  # of each answer
REQUESTS = 4


def _answers(s):
    """The requests of a run with synthetic prompts, whose tokenizer is that of the export."""
    report = s.folder / "report.json"
    options = {
        "backend": f"kind=openai_http,target={s.base},model={s.model}",
        "profile": "kind=concurrent,streams=2",
        "constraint": f"kind=max_requests,count={REQUESTS}",
        "data": f"kind=synthetic_text,prompt_tokens=20,output_tokens={TOKENS}",
        "tokenizer": f"kind=hf_auto,model={s.export}",
        "output": f"kind=json,path={report}",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    program = Path(s.environment) / "bin" / "guidellm"
    done = subprocess.run(
        [program, "run", *words, "--disable-console"], cwd=s.folder, capture_output=True, text=True
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-1500:]
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    return benchmark["requests"]


def stream(s):
    """Also its `ignore_eos`: every answer has the tokens that were asked for, one a chunk."""
    found = _answers(s)
    answers = found["successful"]
    text = all(one["output"] for one in answers)
    counts = [one["output_metrics"]["text_tokens"] for one in answers]
    pieces = [one["info"]["timings"]["token_iterations"] for one in answers]
    seen = [len(found["errored"]), text, counts, min(pieces) > TOKENS // 2]
    return seen, [0, True, [TOKENS] * REQUESTS, True]
