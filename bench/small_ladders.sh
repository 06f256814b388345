#!/bin/sh
# The ladders of docs/small_ladders.md, one after another. The same command resumes.
#
#   sh bench/small_ladders.sh HOME      in a folder where `text` has the text, as parquet files
#
# A quiet core takes about an hour.
set -eu
home=$1
only=${2:-} # one of the ladders
depths="--depths 1,2,3,4 --once 4 --seeds 0,1,2"

ladder() {
    name=$1 preset=$2 ratio=$3
    shift 3
    if [ -n "$only" ] && [ "$only" != "$name" ]; then return; fi
    # shellcheck disable=SC2086 # words
    ${PYTHON:-python} -m jaxchat ladder run "$name" --home "$home" --tier cpu \
        $depths --text-bytes 250000 \
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
modern=$(rates 0.01 0.15 0.004 0.25)

# shellcheck disable=SC2086 # words
{
    ladder september september 0.6 $september
    ladder modern modern 0.6 $modern
    ladder classic classic 0.48 # with its own rates
    ladder smear september 0.6 $september --set model.smear=true
    ladder vocab4k september 0.15 $september --set tokenizer.vocab_size=4096
    depths="--depths 1,2,3 --seeds 3,4,5"
    ladder september_fresh september 0.6 $september
    ladder modern_fresh modern 0.6 $modern
}
