#!/usr/bin/env bash
# Prepare text on the cores of a Cloud TPU slice that is there (launch/tpu_vm.sh create), from the repository's root:
#
#   launch/ray_tpu_vm.sh --name=NAME --zone=ZONE [--project=PROJECT] -- --input='gs://BUCKET/text/**/*.jsonl.gz' --out=gs://BUCKET/rows
#
# Installs what is committed here on all workers, makes a Ray cluster of them, runs sctd_jax.data.prepare on worker 0 with
# --ray=auto and the arguments after --, and stops Ray again, whatever happens. It stays connected to worker 0: start it
# where that lasts, such as in tmux. Cut off or stopped by Ctrl-C, run it again: what has been prepared stays. A second start
# ends the first.
#
# --dry-run      prints the commands and runs none
# --no-setup     the workers have been installed by this script, and nothing has changed since
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/lib.sh
source "$here/lib.sh"

name='' zone='' project='' where=() setup=yes
split "$@"
for flag in ${flags[@]+"${flags[@]}"}; do
    case $flag in
        --name=*) name=${flag#*=} ;;
        --zone=*) zone=${flag#*=} where+=("$flag") ;;
        --project=*) project=${flag#*=} where+=("$flag") ;;
        --no-setup) setup='' ;;
        *) unknown "$flag" ;;
    esac
done
check_place "$name" "$zone" "$project"
need_arguments sctd_jax.data.prepare "the arguments of sctd_jax.data.prepare" \
    "--input=gs://BUCKET/text --out=gs://BUCKET/rows"
find_value --out
need_bucket --out "$value" "workers of a slice share no disk: preparation needs"

ray=sctd_jax/.venv/bin/ray

stop() {
    # shellcheck disable=SC2016  # expanded there
    on all bash -c 'test ! -x "$0" || "$0" stop' "$ray"
}

stop # before the installation is changed
if [[ -n $setup ]]; then
    "$here/tpu_vm.sh" setup "--name=$name" "${where[@]}" --extra=ray ${dry_run:+"$dry_run"}
fi
find_head=(gcloud compute tpus tpu-vm describe "$name" "${where[@]}" '--format=value(networkEndpoints[0].ipAddress)')
if [[ -n $dry_run ]]; then
    run "${find_head[@]}"
    head=ADDRESS_OF_WORKER_0
else
    head=$(run "${find_head[@]}")
fi
trap 'stop || echo "note: Ray may still run on the workers" >&2' EXIT
on 0 "$ray" start --head --port=6379 --disable-usage-stats
# shellcheck disable=SC2016  # expanded there: worker 0 has been started
on all bash -c 'hostname -I | grep -qwF "$0" || exec "$1" start --address="$0:6379"' "$head" "$ray"
on 0 env -C sctd_jax .venv/bin/python -m sctd_jax.data.prepare "${arguments[@]}" --ray=auto
