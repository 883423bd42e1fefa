#!/usr/bin/env bash
# Runs a grid through a Slurm cluster and compares its tables, byte for byte, with those recorded without one.
#
#   tests/slurm/run.sh                    the tests' tiny grid: run without Slurm first, then through it
#   tests/slurm/run.sh quick              a scale whose tables are recorded in git
#   tests/slurm/run.sh quick CHECKOUT     the same of another checkout
#
# Needs what cluster.sh needs, and the extra `cluster` of this package. More options for Snakemake: SLURM_TEST_OPTIONS.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
[[ -n ${SLURM_CONF:-} ]] || exec "$here/tests/slurm/cluster.sh" "$0" "$@"
scale=${1:-tiny}
checkout=${2:-$here}
project=$(dirname "$SLURM_CONF")/project
export PYTHONPATH=$project/src PYTHONDONTWRITEBYTECODE=1
unset CUDA_VISIBLE_DEVICES IFAP_GPU
if [[ $scale == tiny ]]; then
  (cd "$here/tests/support" && PYTHONPATH=$here/src python -c \
    'import pathlib, sys, workflow_project; workflow_project.make_project(pathlib.Path(sys.argv[1]))' "$project")
  cd "$project"
  scale=quick
  snakemake --quiet all --cores 1
  git add --all --force reports
  git -c user.name=t -c user.email=t@t.invalid commit --quiet --message "run without Slurm"
else
  git clone --quiet "$checkout" "$project"
  cd "$project"
fi
[[ -n $(git ls-files "reports/$scale") ]] || { echo "error: scale $scale has no recorded tables" >&2; exit 2; }
rm -rf "results/$scale" "reports/$scale" "data/$scale" "state/$scale" .snakemake logs

start=$SECONDS
# shellcheck disable=SC2086 # options are words
snakemake --workflow-profile profiles/slurm --slurm-init-seconds-before-status-checks 5 ${SLURM_TEST_OPTIONS:-} \
  --config scale="$scale" -- > snakemake.log 2>&1 || { tail -n 40 snakemake.log >&2; exit 1; }
echo "ran through Slurm in $((SECONDS - start)) s; submissions by state:"
squeue --states=all --noheader --format=%T | sort | uniq -c
echo "devices that jobs were given:"
grep -rhoE "GPU [^:]+: assigned by Slurm" logs | sort | uniq -c

# The page also shows how long things took, which is never the same twice.
tables=("reports/$scale" ":!reports/$scale/index.html")
git diff --exit-code --stat -- "${tables[@]}"
echo "passed: all $(git ls-files -- "${tables[@]}" | wc -l) tables and figures are the same bytes as without Slurm"
