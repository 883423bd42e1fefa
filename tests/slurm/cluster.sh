#!/usr/bin/env bash
# Starts a Slurm cluster of its own on this machine, runs a command in it and takes the cluster down, however that ends.
#
#   tests/slurm/cluster.sh COMMAND [ARGUMENT ...]
#
# Needs slurmctld, slurmd and munged (Debian: slurm-wlm, munge). Everything is in one private folder. One node says that
# it has sixteen cores, 128 GB and four GPUs; the GPUs are only declared. SLURM_TEST_MODELS names their models in order:
# SLURM_TEST_MODELS="a100 a100 v100 v100".
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
for program in munged slurmctld slurmd sbatch squeue; do
  command -v "$program" > /dev/null || { echo "error: $program is needed: install slurm-wlm and munge" >&2; exit 2; }
done
(($#)) || { echo "error: which command?" >&2; exit 2; }

private=$(mktemp -d "${TMPDIR:-/tmp}/ifap-slurm-XXXXXX")
chmod 755 "$private"
started=()
command=
finish() {
  code=$?
  trap - EXIT
  [[ -z $command ]] || kill -- "-$command" 2> "$private/kill.err" || true
  # Jobs run under processes of their own, which outlive the daemons.
  if [[ -n $(squeue --noheader 2> "$private/squeue.err") ]]; then
    scancel --user "$(id -un)" || true
    for ((i = 0; i < 30; i++)); do [[ -z $(squeue --noheader 2> "$private/squeue.err") ]] && break || sleep 1; done
  fi
  for ((i = ${#started[@]} - 1; i >= 0; i--)); do
    kill "${started[i]}" 2> "$private/kill.err" || true
    wait "${started[i]}" 2> "$private/kill.err" || true
  done
  # Snakemake would wait for its jobs for ever.
  [[ -z $command ]] || kill -KILL -- "-$command" 2> "$private/kill.err" || true
  ((code == 0)) || tail -n 20 "$private"/*.log >&2 || true
  rm -rf "$private"
  exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM

read -ra models <<< "${SLURM_TEST_MODELS:-}"
((${#models[@]} == 0 || ${#models[@]} == 4)) \
  || { echo "error: SLURM_TEST_MODELS: four models are needed, not ${#models[@]}" >&2; exit 2; }
me=$(id -un)
node=$(hostname -s)
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
# As Slurm wants it: gpu:a100:1,gpu:a100:1,gpu:v100:1,gpu:v100:1 or, without models, gpu:1,gpu:1,gpu:1,gpu:1.
gres=$(for i in 0 1 2 3; do echo "gpu:${models[i]:+${models[i]}:}1"; done | paste --serial --delimiters=,)
mkdir "$private"/{state,spool,munge}
head -c 128 /dev/urandom > "$private/munge/key"
chmod 700 "$private/munge"
chmod 400 "$private/munge/key"
touch "$private/cgroup.conf"
cat > "$private/slurm.conf" << END
ClusterName=ifap
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=$me
SlurmdUser=$me
AuthType=auth/munge
AuthInfo=socket=$private/munge/socket
CredType=cred/munge
StateSaveLocation=$private/state
SlurmdSpoolDir=$private/spool
BatchStartTimeout=60
SlurmctldPidFile=$private/slurmctld.pid
SlurmdPidFile=$private/slurmd.pid
SlurmctldLogFile=$private/slurmctld.log
SlurmdLogFile=$private/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
# There are no control groups here: the daemon looks every two seconds and kills what uses more than it asked for.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
# Ended jobs stay listed until they are counted.
MinJobAge=86400
SlurmdParameters=config_overrides
# A busy machine answers late.
MessageTimeout=90
TCPTimeout=30
NodeName=$node NodeAddr=127.0.0.1 CPUs=16 RealMemory=128000 Gres=$gres State=UNKNOWN
PartitionName=local Nodes=$node Default=YES MaxTime=INFINITE State=UP
END
# A device must be a device file for Slurm to number it in CUDA_VISIBLE_DEVICES; these are other names of /dev/null.
# Without the right to make them the GPUs are only counted.
for i in 0 1 2 3; do
  type=${models[i]:+Type=${models[i]}}
  if mknod "$private/gpu$i" c 1 3 2> "$private/mknod.err"; then
    echo "NodeName=$node Name=gpu $type File=$private/gpu$i"
  else
    echo "NodeName=$node Name=gpu $type Count=1"
  fi
done > "$private/gres.conf"
export SLURM_CONF=$private/slurm.conf
# Snakemake takes SLURM_CONF from the steps of a job, as clusters have theirs in a fixed place.
mkdir "$private/bin"
printf '#!/bin/sh\nSLURM_CONF=%s exec %s "$@"\n' "$SLURM_CONF" "$(command -v srun)" > "$private/bin/srun"
chmod 755 "$private/bin/srun"
export PATH=$private/bin:$PATH

munged --foreground --force --socket="$private/munge/socket" --key-file="$private/munge/key" --num-threads=1 \
  --pid-file="$private/munge/pid" --log-file="$private/munge/log" --seed-file="$private/munge/seed" \
  > "$private/munged.log" 2>&1 &
started+=($!)
slurmctld -D -f "$SLURM_CONF" > "$private/slurmctld.out" 2>&1 &
started+=($!)
slurmd -D -f "$SLURM_CONF" -N "$node" > "$private/slurmd.out" 2>&1 &
started+=($!)
state=
for ((i = 0; i < 60; i++)); do
  state=$(sinfo --noheader --format=%T 2> "$private/sinfo.err" || true)
  [[ $state == idle ]] && break
  sleep 1
done
[[ $state == idle ]] || { echo "error: the cluster does not come up (${state:-no answer})" >&2; exit 1; }
sinfo --noheader --format='cluster up: node %n, %c cores, %m MB, %G' || true
# In a group of its own, so that a signal to this script ends all of it.
setsid "$@" &
command=$!
wait "$command"
