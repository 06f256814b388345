#!/usr/bin/env bash
# One GPU, under 4 minutes: --tier cpu as it is, a d6 on real text, a question to both, the doctor.
#
#   bench/gpu_train.sh --text FOLDER --out FOLDER [--seconds 220]
#   bench/gpu_train.sh --text FOLDER --out FOLDER --smoke    # a few steps, on a CPU
#
# Every part has a time limit; one that fails or takes too long is noted, and the next one starts.
# FOLDER gets summary.txt (each part's exit code and seconds), a log of each, and the runs' metrics.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
if [[ -z "${PYTHON:-}" ]]; then
  PYTHON=python3
  [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi
seconds=220 text="" out="" smoke=""
while (($#)); do
  case "$1" in
    --text) text=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --seconds) seconds=$2; shift 2 ;;
    --smoke) smoke=1; shift ;;
    *) echo "gpu_train.sh: $1 is not one of --text, --out, --seconds, --smoke" >&2; exit 2 ;;
  esac
done
if [[ ! -d "$text" || -z "$out" ]]; then
  echo "gpu_train.sh: give --text, a folder of text that exists, and --out, a folder" >&2
  exit 2
fi
mkdir -p "$out"
out=$(cd "$out" && pwd)
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
failures=0

# part NAME LIMIT COMMAND...: runs it into NAME.log, at most LIMIT seconds and what is left of all
part() {
  local name=$1 limit=$2 began=$SECONDS left=$((seconds - SECONDS)) code
  shift 2
  [[ -z "$smoke" ]] || limit=$seconds
  ((limit < left)) || limit=$left
  if ((limit < 5)); then
    echo "$name: no time left" | tee -a "$out/summary.txt"
    failures=$((failures + 1))
    return
  fi
  echo "\$ ${*:2}" >>"$out/$name.log"
  timeout -k 5 "$limit" "$@" 2>&1 </dev/null | tee -a "$out/$name.log"
  code=${PIPESTATUS[0]}
  ((code == 0)) || failures=$((failures + 1))
  echo "$name: exit code $code after $((SECONDS - began)) s" | tee -a "$out/summary.txt"
}

cpu=() steps=400 batch=32768 rows=32 mid=6000 sft=2000
if [[ -n "$smoke" ]]; then
  export JAX_PLATFORMS=cpu
  steps=3 batch=2048 rows=2 mid=20 sft=10
  cpu=(--set base.steps=4 --set base.eval_rows=8 --set mid.conversations=100
    --set sft.conversations=50 --set rl.steps=1 --set rl.eval_problems=4 --set eval.problems=4)
fi

part tier_cpu 150 "$PYTHON" run_speedrun.py --tier cpu --offline --home "$home" "${cpu[@]}"
part tier_cpu 20 "$PYTHON" -m jaxchat chat --run cpu --home "$home" -p "What is 37 * 24?"
sizes=()
for stage in base mid sft; do
  sizes+=(--set "$stage.batch_tokens=$batch" --set "$stage.micro_rows=$rows")
done
part d6 100 "$PYTHON" run_speedrun.py --tier cpu --offline --home "$home" --data-dir "$text" \
  --stages data,tokenizer,rows,base,mid,sft --set run.name=d6 --set run.depth=6 \
  --set model.n_embd=384 --set model.n_head=3 --set model.n_kv_head=3 \
  --set model.sequence_len=1024 --set tokenizer.vocab_size=8192 --set data.max_chars=30000000 \
  --set base.steps=$steps --set base.eval_every=100 --set "base.eval_rows=$rows" \
  --set mid.conversations=$mid --set sft.conversations=$sft "${sizes[@]}"
part d6 20 "$PYTHON" -m jaxchat chat --run d6 --home "$home" -p "Who are you?"
part doctor 30 "$PYTHON" -m jaxchat doctor --home "$home"
find "$home/runs" -maxdepth 3 | sed "s|$home/||" | sort >>"$out/d6.log"
for run in cpu d6; do
  (cd "$home/runs" && find "$run" \( -name 'metrics*' -o -name 'report*' -o -name '*.toml' \) \
    -size -4M -print0 | tar czf "$out/$run.tgz" --null -T -)
done
cat "$out/summary.txt"
exit $((failures > 0))
