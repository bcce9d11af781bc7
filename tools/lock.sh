#!/usr/bin/env bash
# Re-makes requirements.lock from pyproject.toml: every package at one exact version, for Linux and macOS, Python 3.11+.
# The CUDA libraries are left out on purpose: the CUDA build of torch pins each of them exactly itself, and the CPU build
# has none, so one lock serves both. One version serves all releases of Python, so that results do not depend on it.
set -euo pipefail
cd "$(dirname "$0")/.."
cuda=$(printf -- '--no-emit-package %s ' nvidia-{cublas,cuda-cupti,cuda-nvrtc,cuda-runtime,cudnn-cu13,cufft,cufile,curand,cusolver,cusparse,cusparselt-cu13,nccl-cu13,nvjitlink,nvshmem-cu13,nvtx} triton cuda-bindings cuda-pathfinder cuda-toolkit)
# shellcheck disable=SC2086
.venv/bin/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --fork-strategy fewest --no-annotate --no-header \
  --no-emit-index-url --no-emit-find-links $cuda "$@" -o requirements.lock
.venv/bin/python tools/libraries.py
