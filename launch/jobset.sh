#!/usr/bin/env bash
# Many independent runs on GKE, one line of a file each: prints a JobSet, for kubectl.
#
#   robust-vit sweep --config=ablations/digits --sweep=warmup --workdir=/shared/runs/warmup --print > runs.txt
#   launch/jobset.sh --name=warmup --image=REGISTRY/robust-vit:tpu --topology=2x4 runs.txt | kubectl apply -f -
#
# Every pod takes the line of its index; a pod that is preempted is started again and its run resumes. Runs lie in the
# claim --volume (shared by default), mounted at /shared. This script only prints, so that it needs no --dry-run; with
# the flag it says how many runs there are.
set -euo pipefail
name='' image='' topology='' accelerator='tpu-v5-lite-podslice' chips=4 volume='shared' dry=0 file=''
fail() {
  echo "error: $1" >&2
  exit 1
}
for argument in "$@"; do
  case $argument in
    --name=*) name=${argument#*=} ;;
    --image=*) image=${argument#*=} ;;
    --topology=*) topology=${argument#*=} ;;
    --accelerator=*) accelerator=${argument#*=} ;;
    --chips=*) chips=${argument#*=} ;;
    --volume=*) volume=${argument#*=} ;;
    --dry-run) dry=1 ;;
    -*) fail "$argument: is no flag of --name --image --topology --accelerator --chips --volume --dry-run" ;;
    *) file=$argument ;;
  esac
done
for field in name image topology; do
  [ -n "${!field}" ] || fail "$field = '': must be given, --$field=..."
done
[ -r "$file" ] || fail "file = '$file': must be a file with one command line a run"
runs=$(grep -c . "$file") || fail "file = '$file': holds no line"
[ "$dry" = 0 ] || { echo "$runs runs" && exit 0; }
cat << MANIFEST
apiVersion: v1
kind: ConfigMap
metadata:
  name: $name-runs
data:
  runs.txt: |
$(grep . "$file" | sed 's/^/    /')
---
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
spec:
  failurePolicy:
    maxRestarts: 0
  replicatedJobs:
  - name: run
    replicas: 1
    template:
      spec:
        completions: $runs
        parallelism: $runs
        completionMode: Indexed
        backoffLimitPerIndex: 20
        template:
          spec:
            restartPolicy: Never
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $accelerator
              cloud.google.com/gke-tpu-topology: $topology
            containers:
            - name: run
              image: $image
              command: [bash, -c, 'eval "\$(sed -n "\$((JOB_COMPLETION_INDEX + 1))p" /runs/runs.txt)"']
              resources:
                limits:
                  google.com/tpu: $chips
              volumeMounts:
              - {name: runs, mountPath: /runs}
              - {name: shared, mountPath: /shared}
            volumes:
            - {name: runs, configMap: {name: $name-runs}}
            - {name: shared, persistentVolumeClaim: {claimName: $volume}}
MANIFEST
