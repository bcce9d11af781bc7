#!/usr/bin/env bash
# `dvc repro` within a lab: Prefect and Ray are started once for all stages, and stopped afterwards if they were not up before.
set -u
cd "$(dirname "$0")/.."
was_up=no
pico status --quiet && was_up=yes
pico up || exit 1
[ $was_up = no ] && trap 'pico down' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
start=$SECONDS
dvc repro "$@" || exit $?
printf '\nThe suite is made, in %d min %02d s. Open reports/index.html; `pico up && pico ui` shows the flow runs.\n' \
  $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60))
