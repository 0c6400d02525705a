#!/usr/bin/env bash
# A Cloud TPU slice from the queue to a running job, from the repository's root:
#
#   launch/tpu_vm.sh create --name=NAME --zone=ZONE --type=v5litepod-8 [--spot | --reserved] [--project=PROJECT]
#   launch/tpu_vm.sh setup  --name=NAME --zone=ZONE
#   launch/tpu_vm.sh run    --name=NAME --zone=ZONE -- --config=configs/base.py --workdir=gs://BUCKET/runs/base ...
#   launch/tpu_vm.sh status | describe | logs | ssh | stop | delete --name=NAME --zone=ZONE [-- COMMAND for ssh]
#
# create  asks for the slice as a queued resource and waits until it is there (request only asks, wait only waits)
# setup   copies what is committed here (git archive HEAD) to all workers and installs it
# run     starts sctd_jax.main on all workers, detached: it outlives this terminal; run again, it resumes
# status  of the slice, and of the run on every worker
# describe  what the cloud says of the request, the reason of a failure too
# logs    of worker 0, as they grow
# stop    SIGTERM to the run: it saves a checkpoint on its way out
# delete  gives the slice back; what is in gs:// stays
#
# --dry-run      prints the commands and runs none
# --runtime=R    the VM's software; known for v4, v5e, v5p and v6e
# --poll=30      seconds between looks at the queue
# --extra=ray    what setup installs besides, of pyproject.toml's extras
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/lib.sh
source "$here/lib.sh"

name='' zone='' project='' type=v5litepod-8 runtime='' tier='' poll=30 extra=''

parse() { # COMMAND FLAG...
    local flag
    split "${@:2}"
    for flag in ${flags[@]+"${flags[@]}"}; do
        case $flag in
            --name=*) name=${flag#*=} ;;
            --zone=*) zone=${flag#*=} ;;
            --project=*) project=${flag#*=} ;;
            --type=*) type=${flag#*=} ;;
            --runtime=*) runtime=${flag#*=} ;;
            --poll=*) poll=${flag#*=} ;;
            --extra=*) extra=${flag#*=} ;;
            --spot | --reserved) [[ -z $tier ]] || die "$tier and $flag: a slice is one or the other" && tier=$flag ;;
            *) unknown "$flag" ;;
        esac
    done
    check_poll "$poll"
    [[ -z $extra || " $(extras) " == *" $extra "* ]] || die "--extra=$extra: pyproject.toml has no such extra"
    check_place "$name" "$zone" "$project"
    check_type "$type"
    [[ -z $runtime ]] ||
        check_form --runtime "$runtime" '^[a-z0-9][-a-z0-9.]*$' "a VM's software is expected, such as v2-alpha-tpuv6e"
    where=("--zone=$zone" ${project:+"--project=$project"})
    case $1 in
        run) need_arguments_of_main ;;
        ssh) ;;
        *) no_arguments "$1" ;;
    esac
    [[ -n $dry_run ]] || need_program gcloud
}

# Names of pyproject.toml's extras on a line.
extras() {
    local file=$here/../pyproject.toml
    sed -n '/^\[project.optional-dependencies\]/,/^\[/s/^\([-a-z0-9]*\) = \[.*/\1/p' "$file" | xargs
}

default_runtime() {
    case $type in
        v4-*) echo tpu-ubuntu2204-base ;;
        v5litepod-*) echo v2-alpha-tpuv5-lite ;;
        v5p-*) echo v2-alpha-tpuv5 ;;
        v6e-*) echo v2-alpha-tpuv6e ;;
        *) die "--type=$type: v4-*, v5litepod-*, v5p-* and v6e-* are known; for others give --runtime" ;;
    esac
}

# State of the queued resource; "absent" where there is none.
state() {
    local found look=(gcloud compute tpus queued-resources describe "$name" "${where[@]}" '--format=value(state.state)')
    if [[ -n $dry_run ]]; then
        run "${look[@]}"
    elif found=$("${look[@]}" 2>&1); then
        printf '%s\n' "${found##*$'\n'}"
    elif [[ $found == *NOT_FOUND* ]]; then
        echo absent
    else
        printf '%s\n' "$found" >&2
        return 1
    fi
}

wait_until_active() {
    local before='' now
    if [[ -n $dry_run ]]; then
        state
        return
    fi
    while true; do
        now=$(state)
        [[ $now == "$before" ]] || echo "$name: $now"
        before=$now
        case $now in
            ACTIVE) return ;;
            FAILED | SUSPENDED | SUSPENDING | DELETING | absent)
                die "$name is $now: see why with $(quoted "$0" describe "--name=$name" "${where[@]}"), then $0 delete" ;;
        esac
        sleep "$poll"
    done
}

request() {
    [[ -n $runtime ]] || runtime=$(default_runtime)
    run gcloud compute tpus queued-resources create "$name" "--node-id=$name" "${where[@]}" \
        "--accelerator-type=$type" "--runtime-version=$runtime" ${tier:+"$tier"}
}

setup() {
    local folder=/tmp
    if [[ -z $dry_run ]]; then
        folder=$(mktemp -d)
        # shellcheck disable=SC2064  # the folder as it is now
        trap "rm -rf $(quoted "$folder")" EXIT
    fi
    local archive=$folder/sctd_jax.tar.gz
    [[ -n $dry_run ]] || git diff --quiet HEAD || echo "note: changes that are not committed stay here" >&2
    run git archive --format=tar.gz "--prefix=sctd_jax/" "--output=$archive" HEAD
    run gcloud compute tpus tpu-vm scp "$archive" "$name:sctd_jax.tar.gz" "${where[@]}" --worker=all
    # A run that is going on keeps its files.
    on all bash -c 'test ! -e sctd_jax/launch/worker.sh || bash sctd_jax/launch/worker.sh check'
    on all tar -xzf sctd_jax.tar.gz
    on all bash sctd_jax/launch/worker.sh setup ${extra:+"$extra"}
}

case ${1:-} in
    create | request | wait | setup | run | status | describe | state | logs | ssh | stop | delete) ;;
    -h | --help | help) usage "$0" 0 ;;
    *) die "${1:-no command} is not known: create, setup, run, status, logs, ssh, stop or delete; see $0 --help" ;;
esac
parse "$@"
case $1 in
    request | setup | state) "$1" ;;
    wait) wait_until_active ;;
    create)
        request
        wait_until_active
        ;;
    run)
        find_output
        if [[ -n $option ]] && ! in_bucket "$value"; then
            echo "note: what the run writes on the workers is lost with the slice; $option=gs://BUCKET/... outlives it" >&2
        fi
        on all bash sctd_jax/launch/worker.sh start "${arguments[@]}"
        ;;
    status)
        now=$(state)
        [[ -n $dry_run ]] || now="$name: $now"
        printf '%s\n' "$now"
        if [[ -n $dry_run || $now == "$name: ACTIVE" ]]; then
            on all bash sctd_jax/launch/worker.sh status
        fi
        ;;
    describe) run gcloud compute tpus queued-resources describe "$name" "${where[@]}" ;;
    logs) on 0 bash sctd_jax/launch/worker.sh logs ;;
    stop) on all bash sctd_jax/launch/worker.sh stop ;;
    ssh)
        if [[ ${#arguments[@]} -gt 0 ]]; then
            on 0 "${arguments[@]}"
        else
            run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=0
        fi
        ;;
    delete) run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet ;;
esac
