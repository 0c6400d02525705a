#!/usr/bin/env bash
# One worker's part, on its TPU VM; launch/tpu_vm.sh calls it over ssh:
#
#   worker.sh check | setup [EXTRA...] | start ARGUMENTS OF sctd_jax.main... | status | logs | stop
#
# The run's log, process id and exit status are in ~/.sctd_jax (or $SCTD_JAX_STATE).
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/lib.sh
source "$here/lib.sh"
cd "$here/.."
state=${SCTD_JAX_STATE:-$HOME/.sctd_jax}
python=${PYTHON:-.venv/bin/python}

running() { # by its name too: after a reboot the number may be another's
    [[ -f $state/pid ]] && grep -qs sctd_jax "/proc/$(<"$state/pid")/cmdline"
}

check() {
    if running; then die "a run is going on on this worker (process $(<"$state/pid")): stop it first"; fi
}

setup() { # EXTRA... of pyproject.toml, besides tpu
    check
    install_stack tpu "$@"
    .venv/bin/python -c 'import sctd_jax.config'
    echo "sctd_jax worker: installed"
}

# Detached; the shell around the run writes down how it ended. A machine that shuts down sends SIGTERM to both: the run
# gets its own, and a second one would end it before it has saved, so the shell sends none.
start() {
    check
    [[ -x $python ]] || die "no $python here: tpu_vm.sh setup"
    rm -f "$state/exit" "$state/pid"
    # shellcheck disable=SC2016  # expanded by the inner shell
    setsid nohup bash -c '
        trap "interrupted=yes" TERM
        "${@}" & child=$!
        echo "$child" > "$0/pid"
        while true; do
            interrupted=
            wait "$child" && status=0 || status=$?
            [[ -n $interrupted ]] || break
        done
        echo "$status" > "$0/exit"' "$state" "$python" -m sctd_jax.main "$@" >> "$state/log" 2>&1 < /dev/null &
    for _ in {1..100}; do
        [[ ! -f $state/pid ]] || break
        sleep 0.1
    done
    [[ -f $state/pid ]] || die "the run could not be started; see $state/log"
    echo "sctd_jax worker: started"
}

status() {
    if [[ -f $state/exit ]]; then
        echo "sctd_jax worker: ended $(<"$state/exit")"
    elif running; then
        echo "sctd_jax worker: running"
    else
        echo "sctd_jax worker: idle"
    fi
    [[ ! -f $state/log ]] || tail -n 3 "$state/log"
}

case ${1:-} in # a word that nothing reads may be an option that was meant to count
    check | status | logs | stop) [[ $# -eq 1 ]] || die "$1 takes no words, found ${*:2}; see $0 --help" ;;
    setup)
        for extra in "${@:2}"; do
            [[ $extra =~ ^[a-z][-a-z0-9]*$ ]] || die "setup $extra: an extra of pyproject.toml is expected, such as ray"
        done
        ;;
    start) [[ $# -gt 1 ]] || die "the run's own arguments are missing: start --config=configs/base.py ..." ;;
esac
case ${1:-} in
    -h | --help | help) usage "$0" 0 ;;
    check | setup | start | status | logs | stop)
        mkdir -p "$state" 2> /dev/null || die "the folder of the run's state cannot be made: set SCTD_JAX_STATE to another"
        ;;
    *) die "${1:-no command} is not known: check, setup, start, status, logs or stop; see $0 --help" ;;
esac
case $1 in
    check | status) "$1" ;;
    setup | start) "$1" "${@:2}" ;;
    logs) tail -n 100 -F "$state/log" ;;
    stop)
        if running; then kill -TERM "$(<"$state/pid")"; fi
        echo "sctd_jax worker: told to stop"
        ;;
esac
