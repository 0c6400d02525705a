"""A stand-in for `gcloud` on PATH: a slice of two workers in folders, on which it runs what is sent over ssh.

In the folder $FAKE_CLOUD are `calls` (what it was called with, a JSON list a line), `states` (what `describe` answers,
a line each, the last one again and again; absent: no such slice), `fate` (the states of every new slice, FATE without
it), `refuse` (a message with which every call fails), `refuse-create` (with which every request does), `silent` (where
it is, no worker answers) and `worker-0`, `worker-1`, the home folders of the slice's VMs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])
FATE = "WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n"
STATES, WORKERS = CLOUD / "states", [CLOUD / "worker-0", CLOUD / "worker-1"]


def fail(message: str) -> None:
    print(f"ERROR: (gcloud) {message}", file=sys.stderr)
    sys.exit(1)


def describe(arguments: list[str]) -> None:
    if not STATES.exists():
        fail("NOT_FOUND: Resource was not found.")
    first, *rest = STATES.read_text().splitlines()
    if rest:
        STATES.write_text("\n".join(rest) + "\n")
    print(
        first if "--format=value(state.state)" in arguments else f"state:\n  state: {first}\n  stateInitiator: SERVICE"
    )


def create(name: str) -> None:
    if (CLOUD / "refuse-create").exists():
        fail((CLOUD / "refuse-create").read_text())
    if STATES.exists():
        fail(f"ALREADY_EXISTS: {name}")
    STATES.write_text((CLOUD / "fate").read_text() if (CLOUD / "fate").exists() else FATE)
    for worker in WORKERS:
        worker.mkdir()


def delete() -> None:
    STATES.unlink()
    for worker in WORKERS:
        worker.rename(worker.with_name(f"gone-{worker.name}-{len(list(CLOUD.glob('gone-*')))}"))


def workers(arguments: list[str]) -> list[Path]:
    which = next(a for a in arguments if a.startswith("--worker=")).removeprefix("--worker=")
    return WORKERS if which == "all" else [WORKERS[int(which)]]


def ssh(arguments: list[str]) -> int:
    if (CLOUD / "silent").exists():
        fail("ssh: connect to host 10.0.0.2 port 22: Connection timed out")
    command = next(a for a in arguments if a.startswith("--command=")).removeprefix("--command=")
    statuses = [
        subprocess.run(["bash", "-c", command], cwd=home, env={**os.environ, "HOME": str(home)}).returncode
        for home in workers(arguments)
    ]
    return int(any(statuses))


def main(arguments: list[str]) -> int:
    with (CLOUD / "calls").open("a") as file:
        file.write(json.dumps(arguments) + "\n")
    if (CLOUD / "refuse").exists():
        fail((CLOUD / "refuse").read_text())
    if arguments[0] == "container":
        return 0
    action = arguments[3]
    if arguments[2:4] == ["tpu-vm", "describe"]:
        print("10.0.0.2")
    elif action == "describe":
        describe(arguments)
    elif action == "create":
        create(arguments[4])
    elif action == "delete":
        delete()
    elif action == "scp":
        for home in workers(arguments):
            (home / arguments[5].partition(":")[2]).write_bytes(Path(arguments[4]).read_bytes())
    elif action == "ssh":
        return ssh(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
