#!/bin/sh
# The ladders of docs/small_ladders.md, one after another. The same command resumes.
#
#   sh bench/small_ladders.sh HOME      in a folder where `text` has the text, as parquet files
#
# Two cores take one to two hours.
set -eu
home=$1

ladder() {
    name=$1 preset=$2 ratio=$3
    shift 3
    ${PYTHON:-python} -m jaxchat ladder run "$name" --home "$home" --tier cpu \
        --depths 1,2,3,4 --once 4 --seeds 0,1,2 --text-bytes 250000 \
        --set data.source=folder --set data.folder=text --set data.shards=0 \
        --set model.n_embd=128 --set model.n_head=1 --set model.n_kv_head=1 \
        --set base.batch_tokens=1024 --set base.micro_rows=4 --set optim.warmup_steps=10 \
        --set base.eval_every=100000 --set base.eval_rows=16 --set base.save_every=400 \
        --set mid.conversations=200 --set sft.conversations=100 \
        --set "run.preset=$preset" --set "run.data_ratio=$ratio" "$@"
}

rates() { # of matrices, embeddings, head and scalars
    echo "--set optim.matrix_lr=$1 --set optim.embedding_lr=$2 --set optim.unembedding_lr=$3" \
        "--set optim.scalar_lr=$4 --set optim.weight_decay=0.28"
}

september=$(rates 0.01 0.05 0.00133333 0.25)
only=${2:-} # one of the ladders
each() { if [ -z "$only" ] || [ "$only" = "$1" ]; then ladder "$@"; fi; }

# shellcheck disable=SC2046,SC2086 # lists of words
each september september 0.6 $september
each modern modern 0.6 $(rates 0.01 0.15 0.004 0.25)
each classic classic 0.48 # with its own rates
each smear september 0.6 $september --set model.smear=true
each vocab4k september 0.15 $september --set tokenizer.vocab_size=4096
