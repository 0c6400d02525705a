#!/usr/bin/env bash
# Keep a run going on slices that may be preempted, until its last step:
#
#   launch/babysit.sh --name=NAME --zone=ZONE --type=v5litepod-8 --spot -- --config=configs/base.py --workdir=gs://BUCKET/base
#
# Creates the slice, installs, runs; looks every --poll=60 seconds. A slice that is gone or does not answer is replaced, a
# run that has died is run again: it resumes from its newest checkpoint. Ends with 0 when the run has ended well, otherwise
# with a message: after a wrong config (the run's exit status 2), three deaths in a row within ten minutes of their starts,
# three slices in a row that never answer or cannot be set up, three requests in a row that fail, or five calls in a row
# that the cloud refuses; at once where it refuses the first look (no login, say). Then too the slice is deleted, if there is
# one and the cloud lets it; --keep leaves it. Ctrl-C ends the watching only. Options besides: those of tpu_vm.sh.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/lib.sh
source "$here/lib.sh"

name='' zone='' project='' poll=60 keep='' extra='' options=()
split "$@"
place=(${dry_run:+"$dry_run"})
for flag in ${flags[@]+"${flags[@]}"}; do
    case $flag in
        --name=* | --zone=* | --project=*)
            place+=("$flag")
            [[ $flag != --name=* ]] || name=${flag#*=}
            [[ $flag != --zone=* ]] || zone=${flag#*=}
            [[ $flag != --project=* ]] || project=${flag#*=}
            ;;
        --poll=*) poll=${flag#*=} ;;
        --keep) keep=yes ;;
        --extra=*) extra=$flag ;;
        *) options+=("$flag") ;;
    esac
done
check_place "$name" "$zone" "$project"
need_arguments_of_main
check_poll "$poll"
find_output
[[ -z $option ]] || need_bucket "$option" "$value" "a run that outlives its slice needs"

vm() {
    "$here/tpu_vm.sh" "$1" "${place[@]}" "${@:2}"
}

finish() { # STATUS MESSAGE
    printf '%s: %s\n' "$name" "$2"
    if [[ $1 -ne 0 && -n $ready ]]; then
        vm ssh -- tail -n 100 .sctd_jax/log || true
    fi
    if [[ -z $keep && $(vm state 2> /dev/null) != absent ]] && ! vm delete; then
        echo "$name: the slice may still be there and cost money: $(quoted "$here/tpu_vm.sh" delete "${place[@]}")"
    fi
    exit "$1"
}

if [[ -n $dry_run ]]; then
    vm request ${options[@]+"${options[@]}"}
    vm setup ${extra:+"$extra"}
    vm run -- "${arguments[@]}"
    vm status
    [[ -n $keep ]] || vm delete
    exit
fi

# Wrong options are said before the first look.
"$here/tpu_vm.sh" request "${place[@]}" ${options[@]+"${options[@]}"} ${extra:+"$extra"} --dry-run > /dev/null || exit
need_program gcloud
ready='' before='''' workers='' ended=''
deaths=0 refused=0 silent=0 dead_slices=0 failed=0 started=0

refuse() { # the cloud has refused a call, in its own words above
    refused=$((refused + 1))
    [[ $refused -lt 5 ]] || finish 1 "the cloud has refused five calls in a row"
}

# An active slice: the run on it, unless one is going on already.
launch() {
    if workers=$(vm status) && [[ $workers == *"sctd_jax worker: running"* ]]; then
        echo "$name: a run is going on"
    else
        vm setup ${extra:+"$extra"} || return 1
        vm run -- "${arguments[@]}" || return 1
    fi
    ready=yes started=$SECONDS
}

# A worker does not answer, or cannot be set up.
unanswered() {
    silent=$((silent + 1))
    [[ $silent -ge 5 ]] || return 0
    silent=0 dead_slices=$((dead_slices + 1))
    [[ $dead_slices -lt 3 ]] || finish 1 "three slices in a row do not answer, or cannot be set up"
    replace "does not answer" || refuse
}

replace() { # WHY
    echo "$name: the slice $1; another one"
    ready=''
    vm delete
}

# The run has died on at least one worker: none may be left when it starts again.
again() {
    if [[ $((SECONDS - started)) -lt 600 ]]; then deaths=$((deaths + 1)); else deaths=0; fi
    [[ $deaths -lt 3 ]] || finish 1 "three deaths in a row within ten minutes of their starts"
    echo "$name: the run has ended with ${ended:-nothing}; again"
    vm stop || return 1
    for _ in {1..20}; do
        sleep "$poll" # they save and leave
        workers=$(vm status) || return 1
        [[ $workers == *"sctd_jax worker: running"* ]] || break
    done
    vm run -- "${arguments[@]}" || return 1
    started=$SECONDS
}

look() {
    ended=$(sed -n 's/^.*sctd_jax worker: ended //p' <<< "$workers" | sort -nu | xargs)
    if [[ " $ended " == *" 2 "* ]]; then finish 2 "the run says what is wrong with it"; fi
    if [[ $workers == *"sctd_jax worker: idle"* ]]; then # rebooted
        again
    elif [[ $ended == 0 && $workers != *"sctd_jax worker: running"* ]]; then
        finish 0 "done"
    elif [[ -n $ended && $ended != 0 ]]; then
        again
    fi
}

while true; do
    if ! now=$(vm state); then
        if [[ -z $before ]]; then
            echo "$name: the cloud refuses the first look, for the reason above; nothing has been asked for" >&2
            exit 1
        fi
        refuse
    else
        [[ $now == "$before" ]] || echo "$name: $now"
        before=$now
        case $now in
            absent) if vm request ${options[@]+"${options[@]}"}; then refused=0 ready=''; else refuse; fi ;;
            FAILED)
                failed=$((failed + 1))
                vm describe || true
                [[ $failed -lt 3 ]] || finish 1 "three requests in a row have failed, for the reason above"
                if replace "is $now"; then refused=0; else refuse; fi
                ;;
            SUSPENDED) if replace "is $now"; then refused=0; else refuse; fi ;;
            ACTIVE)
                refused=0 failed=0
                if [[ -z $ready ]]; then
                    if launch; then silent=0; else unanswered; fi
                elif workers=$(vm status); then
                    silent=0 dead_slices=0
                    look || refuse
                else
                    unanswered
                fi
                ;;
            *) refused=0 ;; # in the queue, or on its way out
        esac
    fi
    sleep "$poll"
done
