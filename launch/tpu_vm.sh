#!/usr/bin/env bash
# Train on Cloud TPU: asks for a slice as a queued resource, sets up every worker, starts the same command on all of
# them, and begins again where a preemption ends it. The same command line again goes on with what is there.
#
#   launch/tpu_vm.sh --name=xcit --zone=europe-west4-b --type=v5litepod-16 --spot -- \
#       train --config=xcit_s12 --workdir=gs://bucket/runs/xcit --config.data.options.data_dir=gs://bucket/tfds
#
# What follows -- is `robust-vit`'s; --distributed is added. --dry-run prints the commands and runs none of them.
set -euo pipefail

name='' zone='' type='' runtime='v2-alpha-tpuv5-lite' repository='' revision='HEAD' spot=() dry=0 tries=100
usage() {
  sed -n '2,8s/^# \{0,1\}//p' "$0"
  echo 'flags: --name --zone --type [--runtime] --repository=GIT_URL [--revision] [--spot] [--tries=100] [--dry-run]'
}
fail() {
  echo "error: $1" >&2
  exit 1
}
while [ $# -gt 0 ]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --repository=*) repository=${1#*=} ;;
    --revision=*) revision=${1#*=} ;;
    --tries=*) tries=${1#*=} ;;
    --spot) spot=(--spot) ;;
    --dry-run) dry=1 ;;
    --help) usage && exit 0 ;;
    --) shift && break ;;
    *) fail "$1: is no flag; --help lists them" ;;
  esac
  shift
done
for field in name zone type repository; do
  [ -n "${!field}" ] || fail "$field = '': must be given, --$field=..."
done
[ $# -gt 0 ] || fail 'command: must be given after --, such as -- train --config=digits --workdir=gs://...'

run() {
  printf '+ %q' "$1"
  [ $# -eq 1 ] || printf ' %q' "${@:2}"
  printf '\n'
  [ "$dry" = 1 ] || "$@"
}
on_all() { # a command on every worker of the slice
  run gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}
state() { # of the queued resource; nothing where there is none
  [ "$dry" = 1 ] && echo "${assumed:-}" && return
  gcloud compute tpus queued-resources describe "$name" --zone="$zone" --format='value(state.state)' 2>/dev/null || true
}
obtain() { # waits for the slice; asks for it where it is not there, anew where it was taken away
  case $(state) in
    SUSPENDED | SUSPENDING | FAILED)
      run gcloud compute tpus queued-resources delete "$name" --zone="$zone" --force --quiet
      ;;
    '') ;;
    *) asked=1 ;;
  esac
  if [ -z "${asked:-}" ]; then
    run gcloud compute tpus queued-resources create "$name" --node-id="$name" --zone="$zone" \
      --accelerator-type="$type" --runtime-version="$runtime" "${spot[@]}"
  fi
  assumed=ACTIVE
  until [ "$(state)" = ACTIVE ]; do
    case $(state) in FAILED | SUSPENDED) return 1 ;; esac
    sleep 30
  done
  asked=''
}

# TPU_SKIP_MDS_QUERY must not be set: JAX asks the metadata server who the other workers are.
setup="test -d robust_vit || git clone '$repository' robust_vit; cd robust_vit && git fetch -q && git checkout -q $revision \
&& python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e . 'jax[tpu]'"
command="cd robust_vit && .venv/bin/robust-vit $(printf '%q ' "$@")--distributed"
for ((try = 1; try <= tries; try++)); do
  obtain || continue
  on_all "$setup" || continue
  if on_all "$command"; then
    echo "done; give the slice back: gcloud compute tpus queued-resources delete $name --zone=$zone --force"
    exit 0
  fi
  # A preempted slice is gone; a command that failed on a slice that still stands will fail again.
  [ "$(state)" != ACTIVE ] || fail "$name: the command failed; the slice stands and is still paid for"
done
fail "$name: preempted $tries times"
