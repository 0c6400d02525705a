# shellcheck shell=bash
# What the launch scripts share; sourced, not run.

dry_run='' flags=() arguments=() option='' value=''

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
            --*=) die "$1 has no value; see $0 --help" ;;
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
        *=*) die "$1 is not known; see $0 --help" ;;
        *) die "$1 is not known, or lacks its =VALUE; see $0 --help" ;;
    esac
}

# A value has the form that the cloud wants; anything else would fail there, later.
check_form() { # OPTION VALUE PATTERN EXPECTED
    [[ $2 =~ $3 ]] || die "$1=$2: $4"
}

# Seconds between looks, as sleep takes them: never none, for the cloud is asked after each.
check_poll() {
    check_form --poll "$1" '^(0[.][1-9][0-9]*|[1-9][0-9]{0,3}([.][0-9]+)?)$' \
        "seconds from 0.1 to 9999 are expected, such as --poll=60"
}

check_zone() {
    check_form --zone "$1" '^[a-z]([-a-z0-9]*[a-z0-9])?$' "letters a-z, digits and - are expected, such as us-west4-a"
}

check_project() {
    check_form --project "$1" '^[a-z0-9]([-a-z0-9.:]*[a-z0-9])?$' "a project's id is expected, such as my-project"
}

check_type() {
    check_form --type "$1" '^[a-z][a-z0-9]*-[1-9][0-9x]*$' "a kind and a size are expected, such as v5litepod-8"
}

# A slice's name and place, as Google allows them.
check_place() { # NAME ZONE PROJECT
    [[ -n $1 && -n $2 ]] || die "--name and --zone are needed; see $0 --help"
    check_form --name "$1" '^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$' "letters a-z, digits and - are allowed"
    check_zone "$2"
    [[ -z $3 ]] || check_project "$3"
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

# The run's own arguments, which shall start something there: help is to be had here.
need_arguments() { # MODULE WHOSE EXAMPLE
    local word
    [[ ${#arguments[@]} -gt 0 ]] || die "$2 are missing: after --, such as -- $3"
    for word in "${arguments[@]}"; do
        case $word in
            --dry-run | --dry-run=*) die "$word is this script's own: write it before --" ;;
            -h | -help | --help | --helpshort | --helpfull)
                die "$word after -- would print help on the workers: python -m $1 --help does here" ;;
        esac
    done
}

need_arguments_of_main() {
    need_arguments sctd_jax.main "the run's own arguments" --config=configs/base.py
}

# A word that nothing reads may be an option that was meant to count, such as --dry-run.
no_arguments() { # COMMAND
    [[ ${#arguments[@]} -eq 0 ]] || die "$1 takes no words after --, found ${arguments[*]}; see $0 --help"
}

# Value of an option among the run's own arguments into `value`, behind a = or as the next word; the last one counts.
find_value() { # SPELLING...
    local word spelling wanted=''
    value=''
    for word in ${arguments[@]+"${arguments[@]}"}; do
        if [[ -n $wanted ]]; then
            value=$word wanted=''
            continue
        fi
        for spelling in "$@"; do
            case $word in
                "$spelling") wanted=yes ;;
                "$spelling"=*) value=${word#*=} ;;
            esac
        done
    done
}

# Where sctd_jax.main writes: `option` and its `value`; no option where it writes nothing.
# shellcheck disable=SC2034  # the scripts read them
find_output() {
    find_value --mode -mode
    case $value in
        compile) option='' ;;
        predict) option=--out && find_value --out -out ;;
        *) option=--workdir && find_value --workdir -workdir ;;
    esac
}

in_bucket() { # PATH
    [[ $1 =~ ^gs://[A-Za-z0-9][-A-Za-z0-9._]*/+[^/] ]]
}

need_bucket() { # OPTION VALUE WHY
    in_bucket "$2" || die "$3 $1=gs://BUCKET/..., found ${2:+$1=}${2:-no $1}"
}

die() {
    printf 'error: %s\n' "$(printable "$1")" >&2
    exit 2
}

# A text on one line as a terminal may show it: control characters, and those that turn a line's direction, are escaped.
printable() { # TEXT
    local LC_ALL=C text=$1 shown='' before escaped # bytes: the same wherever it runs
    local control=$'[[:cntrl:]]|\xc2[\x80-\x9f]|\xe2\x80[\x8b-\x8f\xa8-\xae]|\xe2\x81[\xa6-\xa9]'
    while [[ $text =~ $control ]]; do
        before=${text%%"${BASH_REMATCH[0]}"*}
        escaped=$(printf %q "${BASH_REMATCH[0]}") # such as $'\n'
        shown+=$before${escaped:2:${#escaped}-3}
        text=${text:${#before}+${#BASH_REMATCH[0]}}
    done
    printf '%s' "$shown$text"
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
