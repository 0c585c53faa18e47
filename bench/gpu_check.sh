#!/usr/bin/env bash
# What one GPU makes of this project, in parts that end within minutes: is it right, how fast is it, what does our loop cost?
#
#     bench/gpu_check.sh OUT_FOLDER [--dry] [--only PART,PART] [--minutes N]
#
# Needs no network: models have random weights. bench/gpu_check.py says what comes out; --dry is the same on a CPU with
# tiny shapes. $PYTHON names another interpreter than python3; packages: bench/gpu_wheels.txt.
set -euo pipefail
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# More threads only wait for each other at the sizes that run on the CPU.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" -m bench.gpu_check "$out" "${@:2}"
