# shellcheck shell=bash
# What the launch scripts share; sourced, not run.

# What everything is installed with on a machine with TPUs; the version is requirements.txt's.
# shellcheck disable=SC2034  # for the scripts that source this
readonly jax_version=0.10.2
dry_run='' flags=() arguments=()

# What stands before -- into flags, without --dry-run; what stands behind it, the run's own, into arguments.
split() {
    while [[ $# -gt 0 && $1 != -- ]]; do
        if [[ $1 == --dry-run ]]; then dry_run=$1; else flags+=("$1"); fi
        shift
    done
    arguments=("${@:2}")
}

need_arguments() {
    [[ ${#arguments[@]} -gt 0 ]] || die "run needs the run's own arguments after --, such as -- --config=configs/base.py"
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
        "$@"
    fi
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
