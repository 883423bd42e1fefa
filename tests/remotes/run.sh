#!/usr/bin/env bash
# Record a tiny study, push it to a folder, over SSH and to S3, and get it back in fresh clones.
#
#   tests/remotes/run.sh [folder] [ssh] [s3]
#
# Needs `pip install 'ifap[workflow,remotes]'`, and for SSH OpenSSH's sshd (run as root, or as the user who logs in).
# Servers listen on 127.0.0.1 with keys that are made for the run and thrown away with it.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/remotes-XXXXXX")
cell=results/quick/checkpoints/classification/digits/resnet_tiny/ifap/seed0/final
servers=()
unset "${!GIT_@}" "${!SNAKEMAKE@}" 2>/dev/null || true
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES="" XDG_CACHE_HOME=$work/cache
export DVC_NO_ANALYTICS=1 DVC_GLOBAL_CONFIG_DIR=$work/dvc-config DVC_SITE_CACHE_DIR=$work/dvc-cache
export GIT_CONFIG_GLOBAL=/dev/null GIT_{AUTHOR,COMMITTER}_NAME=t GIT_{AUTHOR,COMMITTER}_EMAIL=t@t.invalid
export AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_DEFAULT_REGION=us-east-1

finish() {
  local server
  for server in "${servers[@]}"; do kill "$server" 2>/dev/null || true; done
  rm -rf "$work"
}
trap finish EXIT

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

# Run a command in a checkout, with that checkout's code; its output goes to $work/said.
in_checkout() {
  local folder=$1
  shift
  (cd "$folder" && PYTHONPATH=$folder/src "$@") > "$work/said" 2>&1 || { tail -30 "$work/said" >&2; return 1; }
}

said() { grep -qE -- "$1" "$work/said"; }

free_port() { python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

wait_for() {
  local try
  for try in $(seq 300); do
    if (exec 3<> "/dev/tcp/127.0.0.1/$1") 2>/dev/null; then return; fi
    sleep 0.2
  done
  fail "nothing listens on port $1 after $try tries"
}

start_ssh() {
  local port
  port=$(free_port)
  ssh-keygen -q -t ed25519 -N '' -f "$work/host"
  ssh-keygen -q -t ed25519 -N '' -f "$work/key"
  cp "$work/key.pub" "$work/authorized"
  [[ $EUID != 0 ]] || mkdir -p /run/sshd
  cat > "$work/sshd.conf" << END
ListenAddress 127.0.0.1
Port $port
HostKey $work/host
AuthorizedKeysFile $work/authorized
PidFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM no
Subsystem sftp internal-sftp
END
  "$(PATH=$PATH:/usr/sbin command -v sshd)" -D -f "$work/sshd.conf" -E "$work/sshd.log" &
  servers+=($!)
  wait_for "$port"
  url=ssh://$(id -un)@127.0.0.1:$port$work/store-ssh
  secrets=("keyfile $work/key")
}

start_s3() {
  local port
  port=$(free_port)
  moto_server -H 127.0.0.1 -p "$port" > "$work/moto.log" 2>&1 &
  servers+=($!)
  wait_for "$port"
  endpoint=http://127.0.0.1:$port
  python - "$endpoint" << 'END'
import sys
import boto3
boto3.client("s3", endpoint_url=sys.argv[1]).create_bucket(Bucket="store")
END
  url=s3://store/ifap
  secrets=("endpointurl $endpoint")
}

# Change one byte of an object in the remote.
damage() {
  local object=$1
  if [[ $kind == s3 ]]; then
    python - "$endpoint" "ifap/$object" << 'END'
import sys
import boto3
client = boto3.client("s3", endpoint_url=sys.argv[1])
content = bytearray(client.get_object(Bucket="store", Key=sys.argv[2])["Body"].read())
content[-1] ^= 1
client.put_object(Bucket="store", Key=sys.argv[2], Body=bytes(content))
END
  else
    chmod u+w "$work/store-$kind/$object"
    printf '\377' | dd of="$work/store-$kind/$object" bs=1 seek=9 conv=notrunc status=none
  fi
}

configure() {
  local option
  for option in "${secrets[@]}"; do
    # shellcheck disable=SC2086
    in_checkout "$1" dvc remote modify --local "$kind" $option
  done
}

clone() {
  rm -rf "$work/$1"
  git clone --quiet "$work/project" "$work/$1"
  mkdir "$work/$1/.venv"
  touch "$work/$1/.venv/.ready"
  configure "$work/$1"
}

record() {
  python "$root/tests/faults/run.py" --study "$work/project"
  mkdir "$work/project/.venv"
  touch "$work/project/.venv/.ready"
  in_checkout "$work/project" make record
  in_checkout "$work/project" git add --all
  in_checkout "$work/project" git commit --quiet -m recorded
}

try() {
  kind=$1 secrets=() url=$work/store-folder endpoint=""
  [[ $kind == folder ]] || "start_$kind"
  in_checkout "$work/project" dvc remote add --force --default "$kind" "$url"
  in_checkout "$work/project" dvc remote modify "$kind" verify true
  in_checkout "$work/project" git commit --quiet --all -m "remote $kind"
  configure "$work/project"
  local start=$SECONDS
  in_checkout "$work/project" make push
  echo "$kind: pushed in $((SECONDS - start)) s"

  start=$SECONDS
  clone all
  in_checkout "$work/all" make pull
  echo "$kind: pulled and synced in $((SECONDS - start)) s"
  in_checkout "$work/all" snakemake --cores 1 --dry-run
  said "Nothing to be done" || fail "$kind: snakemake has something to do"
  in_checkout "$work/all" dvc status
  said "up to date" || fail "$kind: dvc status: $(cat "$work/said")"
  [[ -z $(git -C "$work/all" status --porcelain) ]] || fail "$kind: the clone has changes"
  echo "$kind: a fresh clone has nothing to do"

  clone one
  in_checkout "$work/one" make pointer
  in_checkout "$work/one" dvc pull "$cell"
  [[ $(find "$work/one/results" -name '*.safetensors') == "$work/one/$cell/weights.safetensors" ]] \
    || fail "$kind: pulled more or less than one cell"
  cmp "$work/one/$cell/weights.safetensors" "$work/project/$cell/weights.safetensors"
  rm "$work/one/reports/quick/table-4.md"
  in_checkout "$work/one" dvc repro tables@table-4
  said "Running stage 'tables@table-4'" || fail "$kind: table-4 was not made"
  ! said "Running stage '(collect|figures)'" || fail "$kind: more than table-4 ran"
  [[ -z $(git -C "$work/one" status --porcelain) ]] || fail "$kind: table-4 came out different"
  [[ $(find "$work/one" -name '*.safetensors' -not -path '*/.dvc/*' | wc -l) == 1 ]] || fail "$kind: something was trained"
  echo "$kind: one cell comes alone; table-4 comes again without training"

  local sum
  sum=$(md5sum < "$work/project/$cell/weights.safetensors" | cut -c-32)
  damage "files/md5/${sum:0:2}/${sum:2}"
  clone damaged
  rm -rf "$work/dvc-cache"
  if (in_checkout "$work/damaged" make pull) 2>/dev/null; then fail "$kind: a damaged object was taken"; fi
  said "damaged in the remote: $cell/weights.safetensors" || fail "$kind: it is not named: $(cat "$work/said")"
  [[ ! -e $work/damaged/$cell/weights.safetensors ]] || fail "$kind: the damaged object is in place"
  echo "$kind: a damaged object is refused: $(grep -m 1 -o "not fetched, or damaged.*" "$work/said")"
}

[[ ${BASH_SOURCE[0]} == "$0" ]] || return 0 # sourced: the functions alone
record
for remote in "${@:-folder ssh s3}"; do
  for name in $remote; do try "$name"; done
done
