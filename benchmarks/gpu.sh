#!/usr/bin/env bash
# duiti beside TRL, TRL + Liger and Unsloth on one CUDA GPU: makes the environments, then measures
# (benchmarks/gpu says what, docs/gpu.md how to read it).
#
#   benchmarks/gpu.sh                              every case; benchmarks/results/gpu.json
#   benchmarks/gpu.sh --case lora-8b --repeats 5   what benchmarks.gpu takes
#   benchmarks/gpu.sh --dry-run                    the same way on the CPU, tiny models, no verdict
#
# PYTHON        makes the environments (default python3.11)
# TORCH_INDEX   where torch comes from, for a driver that the newest CUDA does not run on,
#               e.g. https://download.pytorch.org/whl/cu126
# CUDA_VISIBLE_DEVICES   the one GPU that is used (default 0)
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3.11}
TORCH=2.13.0
TRL=1.16.0
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}

install() {  # FOLDER ARGUMENTS…: into an environment of its own
  local folder=$1
  shift
  "$folder/bin/pip" install --quiet --disable-pip-version-check "$@"
}

environment() {  # FOLDER FUNCTION: made once, and again where it was left half made
  [ -e "$1/.ready" ] && return
  echo "making $1" >&2
  rm -rf "$1"
  "$PYTHON" -m venv "$1"
  "$2" "$1" || return 1
  touch "$1/.ready"
}

with_torch() { install "$1" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch==$TORCH"; }

with_duiti() {
  with_torch "$1" && install "$1" -c constraints.txt -e .
}

with_trl() {
  with_torch "$1" && install "$1" -c constraints.txt "trl==$TRL" peft || return 1
  # Each is worth having, none is needed: settings that miss it are said and left out.
  local package
  for package in liger-kernel kernels; do
    install "$1" "$package" || echo "$package: cannot be installed here" >&2
  done
  install "$1" --only-binary :all: flash-attn 2>/dev/null ||
    echo "flash-attn: no wheel for this machine; TRL takes the hub's kernel, if it can" >&2
}

with_unsloth() { install "$1" unsloth; }  # it chooses its own torch, transformers and TRL

if [[ " $* " == *" --dry-run "* ]]; then
  [ -x .venv/bin/python ] || make setup
  [ -x .venv-trl/bin/python ] || make .venv-trl/.ready
  exec .venv/bin/python -m benchmarks.gpu --trl .venv-trl/bin/python "$@"
fi

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader ||
  { echo "no NVIDIA GPU here; --dry-run goes the same way on the CPU" >&2; exit 1; }
environment .venv-gpu with_duiti
peers=()
if environment .venv-gpu-trl with_trl; then
  peers+=(--trl .venv-gpu-trl/bin/python)
else
  echo "TRL is left out: it cannot be installed here" >&2
fi
if environment .venv-gpu-unsloth with_unsloth; then
  peers+=(--unsloth .venv-gpu-unsloth/bin/python)
else
  echo "Unsloth is left out: it cannot be installed here" >&2
fi
exec .venv-gpu/bin/python -m benchmarks.gpu "${peers[@]}" "$@"
