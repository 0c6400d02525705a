# shellcheck shell=bash
# What the launch scripts share; sourced, not run.

dry_run='' flags=() arguments=()

# Everything in .venv, for an accelerator: tpu, or cuda, and further extras. The images' own Python is older; uv brings one.
install_stack() { # EXTRA...
    local name extras=()
    for name in "$@"; do extras+=(--extra "$name"); done
    python3 -m pip install --quiet uv
    python3 -m uv venv --quiet --clear --python 3.13 .venv
    python3 -m uv pip install --quiet --python .venv/bin/python --constraint launch/constraints.txt \
        --requirement pyproject.toml "${extras[@]}"
}

# What stands before -- into flags, without --dry-run; what stands behind it, the run's own, into arguments.
split() {
    local before='' flag
    while [[ $# -gt 0 && $1 != -- ]]; do
        case $1 in
            -h | --help) usage "$0" 0 ;;
            --dry-run) dry_run=$1 ;;
            --*)
                for flag in ${flags[@]+"${flags[@]}"}; do
                    [[ ${flag%%=*} != "${1%%=*}" ]] || die "${1%%=*} is given twice; see $0 --help"
                done
                flags+=("$1")
                ;;
            *) die "$1 is no option: ${before:+write $before=$1; }the run's own arguments stand after --; see $0 --help" ;;
        esac
        before='' && [[ $1 == *=* || $1 == "$dry_run" ]] || before=$1
        shift
    done
    arguments=("${@:2}")
}

# The flag is none of the script's, or lacks its value.
unknown() {
    case $1 in
        *=) die "$1 has no value; see $0 --help" ;;
        *=*) die "$1 is not known; see $0 --help" ;;
        *) die "$1 is not known, or lacks its =VALUE; see $0 --help" ;;
    esac
}

# Seconds between looks, as sleep takes them.
check_poll() {
    [[ $1 =~ ^[0-9]+([.][0-9]+)?$ ]] || die "--poll=$1: seconds are expected, such as --poll=60"
}

need_program() {
    local get
    if command -v "$1" > /dev/null; then return; fi
    case $1 in
        gcloud) get="install the Google Cloud CLI (cloud.google.com/sdk), then gcloud auth login" ;;
        xpk) get="pip install xpk" ;;
        kubectl) get="gcloud components install kubectl" ;;
        *) get="install it" ;;
    esac
    die "no program $1 here: $get"
}

need_arguments() {
    [[ ${#arguments[@]} -gt 0 ]] || die "the run's own arguments are missing: after --, such as -- --config=configs/base.py"
}

die() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

# Run a command, or print it ready for a shell to read where this is a dry run.
run() {
    if [[ -n $dry_run ]]; then
        printf '%q ' "$@"
        printf '\n'
    else
        need_program "$1"
        "$@"
    fi
}

# Run a command on one worker of the slice $name, or on all; tpu_vm.sh and ray_tpu_vm.sh say where it is.
on() { # WORKER COMMAND...
    # shellcheck disable=SC2154
    run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$1" "--command=$(quoted "${@:2}")"
}

# The words as one string that a remote shell reads as the same words.
quoted() {
    local text
    text=$(printf '%q ' "$@")
    printf '%s' "${text% }"
}

# The comment at the head of a script is its help.
usage() {
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$1"
    exit "$2"
}
