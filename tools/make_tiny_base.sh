#!/bin/bash
# Makes the base model of the tiny recipe, configs/tiny/base, from nothing: data, supervised training (about a
# minute on two cores), FP8. The same seed gives the same bytes.
#   tools/make_tiny_base.sh [build/fathom]
set -euo pipefail
cd "$(dirname "$0")/.."
fathom=${1:-build/fathom}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 tools/make_tiny_data.py --output configs/tiny/data --sft "$work/sft.jsonl"
"$fathom" sft --config configs/tiny_sft.json --prompt-data "$work/sft.jsonl" --output "$work/bf16"
"$fathom" export-hf --load "$work/bf16" --output "$work/fp8" --dtype fp8
mkdir -p configs/tiny/base
cp "$work"/fp8/*.json "$work"/fp8/*.safetensors configs/tiny/base/
