#!/usr/bin/env bash
# Checks on a Slurm cluster of its own what jobs ask for and what they get: GPUs by model, groups that ask for more memory
# after a failure, and a user whose environment says SBATCH_EXPORT=NONE. Takes some minutes on two cores.
#
#   tests/slurm/requests.sh
#
# Needs what cluster.sh needs, and the extra `cluster` of this package.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
export SLURM_TEST_MODELS="a100 a100 v100 v100"
[[ -n ${SLURM_CONF:-} ]] || exec "$here/tests/slurm/cluster.sh" "$0" "$@"
project=$(dirname "$SLURM_CONF")/project
export PYTHONDONTWRITEBYTECODE=1
unset CUDA_VISIBLE_DEVICES IFAP_GPU
(cd "$here/tests/support" && PYTHONPATH=$here/src python -c \
  'import pathlib, sys, workflow_project; workflow_project.make_project(pathlib.Path(sys.argv[1]))' "$project")
cd "$project"
export PYTHONPATH=$project/src
cell=classification/digits/resnet_tiny
# through_slurm STEP RESOURCES OPTION ...: with the profile, in which a step has other resources. `--set-resources` on the
# command line would not add to the profile's, but replace all of them.
through_slurm() {
  mkdir -p profiles/mine
  sed "s/^  $1: {gpu: 1/  $1: {$2/" "$project/profiles/slurm/config.yaml" > profiles/mine/config.yaml
  grep -q "^  $1: {$2" profiles/mine/config.yaml || { echo "error: the profile has no GPU for $1" >&2; exit 2; }
  snakemake --workflow-profile profiles/mine --slurm-init-seconds-before-status-checks 5 "${@:3}" \
    > snakemake.log 2>&1 || { tail -n 40 snakemake.log >&2; exit 1; }
}
# shows COLUMN ...: what Slurm says of the last submission.
shows() { squeue --states=all --noheader --sort=-i --Format "$1" | head -n 1 | tr -d ' '; }
expect() { [[ $2 == "$3" ]] && echo "passed: $1: $2" || { echo "failed: $1: $2, not $3" >&2; exit 1; }; }
device() { grep -ohE 'GPU [^:]+: assigned by Slurm' "$1" || echo none; }

through_slurm baseline "gpu: 1, gpu_model: v100" -- "results/quick/cells/$cell/baseline/seed0/baseline.json"
expect "a model by gpu_model" "$(shows tres-per-job:30) $(device "logs/quick/$cell/baseline/seed0/baseline.log")" \
  "gres:gpu:v100:1 GPU 2: assigned by Slurm"

# With `gpu: 1` beside it Slurm refuses a typed gres; a job without `gpu` keeps what gres gave it all the same.
SBATCH_EXPORT=NONE through_slurm prune 'gpu: 0, gres: "gpu:a100:1"' -- "results/quick/cells/$cell/ifap/seed0/prune.json"
expect "a model by gres, with SBATCH_EXPORT=NONE" \
  "$(shows tres-per-node:30) $(device "logs/quick/$cell/ifap/seed0/prune.log")" \
  "gres:gpu:a100:1 GPU 0: assigned by Slurm"

through_slurm finetune "gpu: 0" -- "results/quick/cells/$cell/ifap/seed0/finetune.json"
expect "no GPU" "$(shows tres-per-job:30) $(device "logs/quick/$cell/ifap/seed0/finetune.log")" "N/A none"

# The second job of a group needs more memory than its first two submissions ask for.
mkdir ../group
cat > ../group/Snakefile << 'END'
rule second:
    input: "first"
    output: "second"
    shell: "python3 -c 'import time; kept = bytearray(b\"x\") * 1200000000; time.sleep(20)' && touch {output}"
rule first:
    output: "first"
    shell: "touch {output}"
END
(
  cd ../group
  through_slurm baseline "gpu: 1" --set-resources first:mem_mb="500*attempt" second:mem_mb="500*attempt" \
    --groups first=pair second=pair -- second
)
expect "memory that a group asks for" "$(squeue --states=all --noheader --sort=i --Format minmemory:20 | tail -n 3 | xargs)" \
  "500M 1000M 1500M"
