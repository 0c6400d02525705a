#!/usr/bin/env bash
# Keep a run going on slices that may be preempted, until its last step:
#
#   launch/babysit.sh --name=NAME --zone=ZONE --type=v5litepod-8 --spot -- --config=configs/base.py --workdir=gs://BUCKET/base
#
# Creates the slice, installs, runs; looks every --poll=60 seconds; when the slice is gone it creates another, and when
# the run has died it runs it again: it resumes from its newest checkpoint. Ends with 0 when the run has ended well, and
# otherwise with a message: after a wrong config (the run's exit status 2), three deaths within ten minutes of their
# start, or five looks in a row that the cloud did not answer. The slice is deleted at the end; --keep leaves it. Ctrl-C
# ends the watching only. Options besides: those of tpu_vm.sh.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/lib.sh
source "$here/lib.sh"
[[ ${1:-} != --help && ${1:-} != -h ]] || usage "$0" 0

name='' zone='' poll=60 keep='' options=() arguments=() place=()
while [[ $# -gt 0 ]]; do
    case $1 in
        --name=* | --zone=* | --project=*)
            place+=("$1")
            [[ $1 != --name=* ]] || name=${1#*=}
            [[ $1 != --zone=* ]] || zone=${1#*=}
            ;;
        --poll=*) poll=${1#*=} ;;
        --keep) keep=yes ;;
        --dry-run)
            dry_run=yes
            place+=("$1")
            ;;
        --)
            arguments=("${@:2}")
            break
            ;;
        *) options+=("$1") ;;
    esac
    shift
done
[[ -n $name && -n $zone && ${#arguments[@]} -gt 0 ]] || usage "$0" 2 >&2
[[ " ${arguments[*]}" == *" --workdir=gs://"* || " ${arguments[*]}" == *" --workdir=/mnt/"* ]] ||
    die "a run that outlives its slice needs --workdir=gs://BUCKET/... or a disk's --workdir=/mnt/..."

vm() {
    "$here/tpu_vm.sh" "$1" "${place[@]}" "${@:2}"
}

# A slice with the run on it, whatever is there now.
launch() {
    case $1 in
        ACTIVE) ;;
        absent) vm create ${options[@]+"${options[@]}"} "--poll=$poll" ;;
        FAILED | SUSPENDED | SUSPENDING | DELETING)
            echo "$name: the slice is $1; another one"
            vm delete
            vm create ${options[@]+"${options[@]}"} "--poll=$poll"
            ;;
        *) vm wait "--poll=$poll" ;;
    esac
    vm setup
    vm run -- "${arguments[@]}"
}

finish() {
    echo "$name: $2"
    [[ -n $keep ]] || vm delete
    exit "$1"
}

if [[ -n $dry_run ]]; then
    launch absent
    vm status
    vm delete
    exit
fi

now=$(vm state)
if [[ $now == ACTIVE ]] && vm status | grep -q "sctd_jax worker: running"; then
    echo "$name: a run is going on"
else
    launch "$now"
fi

quick_deaths=0 silent=0 started=$SECONDS
while true; do
    sleep "$poll"
    if ! now=$(vm state) || { [[ $now == ACTIVE ]] && ! workers=$(vm status); }; then
        silent=$((silent + 1))
        [[ $silent -lt 5 ]] || die "$name: no answer from the cloud, five times in a row"
        continue
    fi
    silent=0
    if [[ $now != ACTIVE ]]; then
        launch "$now"
        started=$SECONDS
        continue
    fi
    ended=$(sed -n 's/^.*sctd_jax worker: ended //p' <<< "$workers" | sort -n | uniq | xargs)
    case "$ended/$workers" in
        "/"*"worker: running"* | "0/"*"worker: running"*) continue ;; # not all leave at the same moment
        *"worker: idle"*) ;; # rebooted
        "0/"*) finish 0 "done" ;;
        "2/"* | "2 "*/* | *" 2/"* | *" 2 "*/*) finish 2 "the run says what is wrong with it:"$'\n'"$workers" ;;
    esac
    [[ $((SECONDS - started)) -lt 600 ]] || quick_deaths=0
    quick_deaths=$((quick_deaths + 1))
    [[ $quick_deaths -lt 3 ]] || finish 1 "three deaths within ten minutes of their start:"$'\n'"$workers"
    echo "$name: the run ended with ${ended:-nothing}; again"
    vm stop
    sleep "$poll" # the other workers save and leave
    vm run -- "${arguments[@]}"
    started=$SECONDS
done
