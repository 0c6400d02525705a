#!/usr/bin/env bash
# One worker's part, on its TPU VM; launch/tpu_vm.sh calls it over ssh:
#
#   worker.sh setup | start ARGUMENTS OF sctd_jax.main... | status | logs | stop
#
# The run's log, process id and exit status are in ~/.sctd_jax (or $SCTD_JAX_STATE).
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/lib.sh
source "$here/lib.sh"
cd "$here/.."
state=${SCTD_JAX_STATE:-$HOME/.sctd_jax}
python=${PYTHON:-.venv/bin/python}
mkdir -p "$state"

running() {
    [[ -f $state/pid ]] && kill -0 "$(<"$state/pid")" 2>/dev/null
}

# The images' own Python is older than 3.11; uv brings one.
setup() {
    running && die "a run is going on on this worker (process $(<"$state/pid")): stop it first"
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --clear --python 3.11 .venv
    python3 -m uv pip install --quiet --python .venv/bin/python --no-deps -r requirements.txt
    python3 -m uv pip install --quiet --python .venv/bin/python "jax[tpu]==$jax_version"
    .venv/bin/python -c 'import sctd_jax.config'
    echo "sctd_jax worker: installed"
}

start() {
    running && die "a run is going on on this worker (process $(<"$state/pid")): stop it first"
    [[ -x $python ]] || die "no $python here: tpu_vm.sh setup"
    rm -f "$state/exit" "$state/pid"
    # shellcheck disable=SC2016  # expanded by the inner shell
    setsid nohup bash -c '
        echo $$ > "$0/pid"
        trap "kill -TERM \$child" TERM
        "${@}" & child=$!
        wait $child && status=0 || status=$?
        if kill -0 $child 2>/dev/null; then wait $child && status=0 || status=$?; fi
        echo $status > "$0/exit"
        rm -f "$0/pid"' "$state" "$python" -m sctd_jax.main "$@" >> "$state/log" 2>&1 < /dev/null &
    until [[ -f $state/pid || -f $state/exit ]]; do sleep 0.1; done
    echo "sctd_jax worker: started"
}

status() {
    if running; then
        echo "sctd_jax worker: running"
    elif [[ -f $state/exit ]]; then
        echo "sctd_jax worker: ended $(<"$state/exit")"
    else
        echo "sctd_jax worker: idle"
    fi
    [[ ! -f $state/log ]] || tail -n 3 "$state/log"
}

case ${1:-} in
    setup | status) "$1" ;;
    start) start "${@:2}" ;;
    logs) tail -n 100 -F "$state/log" ;;
    stop)
        if running; then kill -TERM "$(<"$state/pid")"; fi
        echo "sctd_jax worker: told to stop"
        ;;
    *) usage "$0" 2 >&2 ;;
esac
