#!/usr/bin/env bash
# Train on the GPUs of this machine: one process with all of them. Again the same command resumes.
#
#   launch/gpu.sh train --config=xcit_s12 --workdir=runs/xcit --data=folder:/data/imagenet
#
# The first call makes .venv with JAX for CUDA. --dry-run (first) prints the commands and runs none of them.
set -euo pipefail
dry=0
[ "${1:-}" != --dry-run ] || { dry=1 && shift; }
[ $# -gt 0 ] || { echo 'error: command: must be given, such as train --config=digits --workdir=runs/digits' >&2; exit 1; }
cd "$(dirname "$0")/.."

run() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  [ "$dry" = 1 ] || "$@"
}
if [ "$dry" = 0 ] && ! command -v nvidia-smi > /dev/null; then
  echo 'error: nvidia-smi: not found; this script is for NVIDIA GPUs' >&2
  exit 1
fi
if [ "$dry" = 1 ] || [ ! -x .venv/bin/robust-vit ]; then
  run python3 -m venv .venv
  run .venv/bin/pip install --quiet -c constraints.txt -e . 'jax[cuda12]'
fi
# Compiled programs are kept, so that a run that resumes begins at once.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}"
run .venv/bin/robust-vit "$@"
