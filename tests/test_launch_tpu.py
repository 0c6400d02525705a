"""launch/tpu_vm.sh, babysit.sh, gke.sh and what is beside them, against stand-ins for the cloud's programs."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from tests import helpers

LAUNCH = helpers.ROOT / "launch"
PLACE = ("--name=slice", "--zone=us-west4-a")
ODD = ("--config=configs/base.py", "--workdir=gs://bucket/a'b run/$HOME", "--config.data.input=text/**/*.txt")


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository with what is launched, committed."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(LAUNCH, folder / "launch")
    shutil.copy(helpers.ROOT / "pyproject.toml", folder)
    (folder / "sctd_jax").mkdir()
    (folder / "sctd_jax" / "main.py").touch()
    person = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run(["git", *person, *command], cwd=folder, check=True)
    return folder


INSTALL = 'mkdir -p .venv/bin; ln -sf "$(command -v trainer)" .venv/bin/python'


class Cloud:
    """Stand-ins for gcloud, xpk, kubectl and docker on PATH, and what they were called with."""

    def __init__(self, folder, repository):
        self.folder, self.programs, self.repository = folder / "cloud", folder / "bin", repository
        self.folder.mkdir()
        self.programs.mkdir()
        self._program("gcloud", f'exec {sys.executable} {helpers.ROOT}/tests/fake_gcloud.py "$@"')
        for name in ("xpk", "kubectl", "docker"):
            self._program(name, f'printf "%q " {name} "$@" >> {self.folder}/others; echo >> {self.folder}/others')
        # Workers have an installation that takes no time, and a run that does what `behave` says.
        self._program("python3", INSTALL)
        self._program("trainer", f"[[ $1 == -c ]] || source {self.folder}/behaviour")
        self.behave("exit 0")

    def _program(self, name, body):
        (self.programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (self.programs / name).chmod(0o755)

    def behave(self, body):
        """Commands of the run on a worker, in bash, with its arguments in "$@"."""
        (self.folder / "behaviour").write_text(f'printf "%q " "$@" >> ~/started; echo >> ~/started\n{body}\n')

    def environment(self):
        return {**os.environ, "PATH": f"{self.programs}:{os.environ['PATH']}", "FAKE_CLOUD": str(self.folder)}

    def start(self, script, *args, **environment):
        by = ["bash"] if script.endswith(".sbatch") else []
        return subprocess.Popen(
            [*by, f"launch/{script}", *args], env=self.environment() | environment, cwd=self.repository, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, script, *args, **environment):
        """(exit status, output)."""
        process = self.start(script, *args, **environment)
        output = process.communicate(timeout=120)[0]
        return process.returncode, output

    def calls(self):
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def actions(self):
        """The calls without the looks: create, scp, ssh start and so on."""
        words = [call[3] if call[3] != "ssh" else call[-1].split()[-1] for call in self.calls()]
        quiet = ("describe", "status", "sctd_jax.tar.gz", "check", "stop", ".sctd_jax/log")
        names = [word for word in words if word not in quiet]
        return ["start" if "=" in word else word for word in names]

    def started(self, worker=0):
        path = self.folder / f"worker-{worker}" / "started"
        return [shlex.split(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def cloud(tmp_path, repository):
    return Cloud(tmp_path, repository)


def until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_create_asks_for_a_queued_resource_and_waits_until_it_is_there(cloud):
    status, output = cloud.run(
        "tpu_vm.sh", "create", *PLACE, "--type=v6e-16", "--spot", "--project=my-project", "--poll=0.1"
    )
    assert status == 0, output
    assert cloud.calls()[0] == [
        "compute", "tpus", "queued-resources", "create", "slice", "--node-id=slice", "--zone=us-west4-a",
        "--project=my-project", "--accelerator-type=v6e-16", "--runtime-version=v2-alpha-tpuv6e", "--spot",
    ]  # fmt: skip
    assert output.splitlines() == ["slice: WAITING_FOR_RESOURCES", "slice: PROVISIONING", "slice: ACTIVE"]


def test_a_request_that_fails_is_said(cloud):
    (cloud.folder / "states").write_text("WAITING_FOR_RESOURCES\nFAILED\n")
    status, output = cloud.run("tpu_vm.sh", "wait", *PLACE, "--poll=0.1")
    assert status == 2
    assert "error: slice is FAILED" in output
    assert f"see why with launch/tpu_vm.sh describe {' '.join(PLACE)}, then" in output


def test_setup_leaves_no_folder_and_runs_nothing_of_the_name_of_the_folder_for_temporary_files(cloud, tmp_path):
    folder = tmp_path / f"a'; touch '{tmp_path.name}'; echo 'b $HOME"
    folder.mkdir()
    cloud.run("tpu_vm.sh", "create", "--poll=0.1", *PLACE)
    status, output = cloud.run("tpu_vm.sh", "setup", *PLACE, TMPDIR=str(folder))
    assert status == 0, output
    assert list(folder.iterdir()) == []
    assert not (cloud.repository / tmp_path.name).exists()


def test_setup_and_run_reach_all_workers_with_the_arguments_as_they_are(cloud):
    for command in (["create", "--poll=0.1"], ["setup"], ["run"]):
        arguments = ["--", *ODD] if command == ["run"] else []
        status, output = cloud.run("tpu_vm.sh", *command, *PLACE, *arguments)
        assert status == 0, output
    until(lambda: cloud.started(0) and cloud.started(1))
    assert cloud.started(0) == cloud.started(1) == [["-m", "sctd_jax.main", *ODD]]
    assert (cloud.folder / "worker-1" / "sctd_jax" / "sctd_jax" / "main.py").is_file()
    until(lambda: (cloud.folder / "worker-1" / ".sctd_jax" / "exit").exists())
    status, output = cloud.run("tpu_vm.sh", "status", *PLACE)
    assert output.splitlines() == ["slice: ACTIVE", "sctd_jax worker: ended 0", "sctd_jax worker: ended 0"]


def test_a_second_run_is_refused_and_stop_ends_the_first_with_its_own_status(cloud):
    cloud.behave("trap 'echo saved; exit 143' TERM; echo training; while true; do sleep 0.1; done")
    for command in (["create", "--poll=0.1"], ["setup"], ["run"]):
        arguments = ["--", "--config=c"] if command == ["run"] else []
        assert cloud.run("tpu_vm.sh", *command, *PLACE, *arguments)[0] == 0
    until(lambda: cloud.started(0) and cloud.started(1))
    status, output = cloud.run("tpu_vm.sh", "run", *PLACE, "--", "--config=c")
    assert status != 0
    assert "a run is going on on this worker" in output
    assert cloud.run("tpu_vm.sh", "stop", *PLACE)[0] == 0
    until(lambda: all((cloud.folder / f"worker-{i}" / ".sctd_jax" / "exit").exists() for i in range(2)))
    _, output = cloud.run("tpu_vm.sh", "status", *PLACE)
    assert output.splitlines()[1:] == ["sctd_jax worker: ended 143", "training", "saved"] * 2


COMMANDS = ["create", "setup", "run", "status", "describe", "logs", "ssh", "stop", "delete"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_failing_cloud_call_stops_with_its_message(cloud, command):
    (cloud.folder / "refuse").write_text("PERMISSION_DENIED: no quota for you")
    status, output = cloud.run("tpu_vm.sh", command, *PLACE, *(["--", "--config=c"] if command == "run" else []))
    assert status != 0
    assert "PERMISSION_DENIED: no quota for you" in output
    assert len(cloud.calls()) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_a_dry_run_prints_what_the_run_would_do(cloud, command):
    arguments = ["--", *ODD] if command in ("run", "ssh") else []
    status, output = cloud.run("tpu_vm.sh", command, *PLACE, "--dry-run", *arguments)
    assert status == 0, output
    assert not cloud.calls()
    printed = [shlex.split(line) for line in output.splitlines()]
    assert {line[0] for line in printed} <= {"gcloud", "git"}
    if arguments:
        assert shlex.split(printed[-1][-1].removeprefix("--command="))[-3:] == list(ODD)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", "--name=slice"], "--name and --zone are needed"),
        (["create", "--name=My Slice", "--zone=z"], "--name=My Slice: letters a-z"),
        (["create", *PLACE, "--type=v9-8"], "--type=v9-8: v4-*"),
        (["create", *PLACE, "--sport"], "--sport is not known"),
        (["create", *PLACE, "--spot", "--reserved"], "--spot and --reserved: a slice is one or the other"),
        (["create", *PLACE, "--zone=other"], "--zone is given twice"),
        (["setup", *PLACE, "--extra=banana"], "--extra=banana: pyproject.toml has no such extra"),
        (["delete", *PLACE, "--dry-run", "extra"], "extra is no option: the run's own arguments stand after --"),
        (["create", *PLACE, "--poll=soon"], "--poll=soon: seconds from 0.1 to 9999"),
        (["create", "--name", "a", "--zone=z"], "a is no option: write --name=a; "),
        (["create", *PLACE, "configs/base.py"], "configs/base.py is no option: the run's own arguments stand after --"),
        (["create", *PLACE, "--type"], "--type is not known, or lacks its =VALUE"),
        (["run", *PLACE], "the run's own arguments are missing"),
        (["craete", *PLACE], "craete is not known: create, setup, run"),
        ([], "no command is not known: create, setup, run"),
    ],
)
def test_a_wrong_argument_is_said_before_anything_is_called(cloud, arguments, message):
    status, output = cloud.run("tpu_vm.sh", *arguments)
    assert status == 2
    assert output.startswith(f"error: {message}")
    assert len(output.splitlines()) == 1
    assert not cloud.calls()


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("babysit.sh", ["--name", "a"], "a is no option: write --name=a; "),
        ("babysit.sh", ["--zone=z"], "--name and --zone are needed"),
        ("babysit.sh", [*PLACE], "the run's own arguments are missing"),
        # What its helper would refuse later, again and again.
        ("babysit.sh", [*PLACE, "--sport", "--", "--workdir=gs://b/r"], "--sport is not known"),
        ("babysit.sh", [*PLACE, "--type=v9-8", "--", "--workdir=gs://b/r"], "--type=v9-8: v4-*"),
        ("babysit.sh", [*PLACE, "--poll=soon", "--", "--workdir=gs://b/r"], "--poll=soon: seconds from 0.1 to 9999"),
        ("gke.sh", ["rnu"], "rnu is not known: build, run, status"),
        ("gke.sh", ["status", "--cluster", "c"], "c is no option: write --cluster=c; "),
        ("ray_tpu_vm.sh", ["--zone=z"], "--name and --zone are needed"),
        ("ray_tpu_vm.sh", [*PLACE, "--sport"], "--sport is not known"),
        ("ray_tpu_vm.sh", [*PLACE], "the arguments of sctd_jax.data.prepare are missing"),
        ("ray_tpu_vm.sh", [*PLACE, "--", "--out=rows"], "workers of a slice share no disk: preparation needs"),
        ("worker.sh", ["strat"], "strat is not known: check, setup, start"),
    ],
)
def test_so_it_is_by_the_other_scripts(cloud, script, arguments, message):
    status, output = cloud.run(script, *arguments)
    assert (status, len(output.splitlines())) == (2, 1), output
    assert output.startswith(f"error: {message}")
    assert not cloud.calls()


GCS_RUN = ("--", "--config=configs/base.py", "--workdir=gs://bucket/run")
GKE_RUN = ("run", "--cluster=c", "--name=base", "--image=registry/sctd_jax:1", "--dry-run")
RUN = ("run", *PLACE, "--dry-run")
REHEARSALS = [
    *(("tpu_vm.sh", name, *PLACE) for name in ("create", "request", "wait", "setup", "status", "describe", "state")),
    *(("tpu_vm.sh", name, *PLACE) for name in ("logs", "ssh", "stop", "delete")),
    ("tpu_vm.sh", "setup", *PLACE, "--extra=ray"),
    ("tpu_vm.sh", "run", *PLACE, *GCS_RUN),
    ("tpu_vm.sh", "ssh", *PLACE, "--", "ls", "--help"),
    ("babysit.sh", *PLACE, *GCS_RUN),
    ("babysit.sh", *PLACE, "--keep", *GCS_RUN),
    ("gke.sh", "build", "--image=registry/sctd_jax:1"),
    ("gke.sh", "run", "--cluster=c", "--name=base", "--image=registry/sctd_jax:1", *GCS_RUN),
    ("gke.sh", "status", "--cluster=c"),
    ("gke.sh", "logs", "--cluster=c", "--name=base"),
    ("gke.sh", "delete", "--cluster=c", "--name=base"),
    ("ray_tpu_vm.sh", *PLACE, "--", "--out=gs://bucket/rows"),
    ("ray_tpu_vm.sh", *PLACE, "--no-setup", "--", "--out=gs://bucket/rows"),
    ("slurm.sbatch", "--config=configs/base.py"),
    ("ray.sbatch", "--out=/shared/rows"),
]


@pytest.mark.parametrize("line", REHEARSALS, ids=" ".join)
def test_a_dry_run_calls_no_program_whatever_the_command(cloud, line):
    for name in ("gcloud", "git", "xpk", "kubectl", "docker", "ssh", "scp", "sleep", "srun", "scontrol", "python3"):
        cloud._program(name, f"echo {name} >> {cloud.folder}/others; exit 1")
    script, *arguments = line
    if script.endswith(".sh"):
        place = arguments.index("--") if "--" in arguments else len(arguments)
        arguments.insert(place, "--dry-run")
    status, output = cloud.run(script, *arguments, DRY_RUN="1")
    called = (cloud.folder / "others").read_text() if (cloud.folder / "others").exists() else ""
    assert (status, called) == (0, ""), output
    assert output.splitlines() and all(shlex.split(printed) for printed in output.splitlines())


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh"])
def test_the_rehearsals_are_of_every_command(script):
    named = re.findall(r"^    ((?:\w+ \| )+\w+)\)", (LAUNCH / script).read_text(), re.M)[0].split(" | ")
    assert set(named) == {line[1] for line in REHEARSALS if line[0] == script}


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("gke.sh", [*GKE_RUN, "--slices=0", *GCS_RUN], "--slices=0: a whole number from 1 to 9999"),
        ("gke.sh", [*GKE_RUN, "--slices=two", *GCS_RUN], "--slices=two: a whole number from 1 to 9999"),
        ("gke.sh", [*GKE_RUN, "--slices=99999999999999999999", *GCS_RUN], "--slices=99999999999999999999: a whole"),
        ("gke.sh", [*GKE_RUN, "--restarts=-1", *GCS_RUN], "--restarts=-1: a whole number from 0 to 999999"),
        ("gke.sh", [*GKE_RUN, "--type=v5litepod-0", *GCS_RUN], "--type=v5litepod-0: a kind and a size"),
        ("gke.sh", [*GKE_RUN, "--zone=us west", *GCS_RUN], "--zone=us west: letters a-z, digits and -"),
        ("gke.sh", [*GKE_RUN, "--project=a b", *GCS_RUN], "--project=a b: a project's id is expected"),
        ("gke.sh", ["status", "--cluster=a b", "--dry-run"], "--cluster=a b: letters a-z, digits and -"),
        ("gke.sh", ["build", "--image=a b", "--dry-run"], "--image=a b: REGISTRY/REPO/sctd_jax:TAG"),
        ("gke.sh", [*GKE_RUN, "--", "--config=c"], "a pod's disk is lost with the pod: a run needs --workdir=gs://"),
        ("gke.sh", [*GKE_RUN, "--", "--workdir=runs/local"], "a pod's disk is lost with the pod: a run needs"),
        ("gke.sh", [*GKE_RUN, "--", "--mode=predict", "--out=a.csv"], "a pod's disk is lost with the pod: a run needs"),
        ("gke.sh", [*GKE_RUN, *GCS_RUN, "--help"], "--help after -- would print help on the workers: python -m"),
        ("gke.sh", ["delete", "--cluster=c", "--name=n", "--", "--dry-run"], "delete takes no words after --, found"),
        ("tpu_vm.sh", ["create", *PLACE[:1], "--zone=us west", "--dry-run"], "--zone=us west: letters a-z, digits and"),
        ("tpu_vm.sh", ["create", *PLACE, "--project=a b", "--dry-run"], "--project=a b: a project's id is expected"),
        ("tpu_vm.sh", ["create", *PLACE, "--type=v5litepod-x", "--dry-run"], "--type=v5litepod-x: a kind and a size"),
        ("tpu_vm.sh", ["create", *PLACE, "--runtime=a b", "--dry-run"], "--runtime=a b: a VM's software"),
        ("tpu_vm.sh", ["create", *PLACE, "--runtime=", "--dry-run"], "--runtime= has no value"),
        ("tpu_vm.sh", ["create", *PLACE, "--project=", "--dry-run"], "--project= has no value"),
        ("tpu_vm.sh", ["setup", *PLACE, "--extra=.*", "--dry-run"], "--extra=.*: pyproject.toml has no such extra"),
        ("tpu_vm.sh", ["setup", *PLACE, "--extra=dependencies", "--dry-run"], "--extra=dependencies: pyproject.toml"),
        ("tpu_vm.sh", ["create", *PLACE, "--poll=0", "--dry-run"], "--poll=0: seconds from 0.1 to 9999"),
        ("tpu_vm.sh", ["create", *PLACE, "--poll=0.0", "--dry-run"], "--poll=0.0: seconds from 0.1 to 9999"),
        ("tpu_vm.sh", ["create", *PLACE, "--poll=99999999999999999999", "--dry-run"], "--poll=99999999999999999999:"),
        ("tpu_vm.sh", ["status", *PLACE, "--dry-run", "--", "foo"], "status takes no words after --, found foo"),
        ("tpu_vm.sh", ["delete", *PLACE, "--", "--dry-run"], "delete takes no words after --, found --dry-run"),
        ("tpu_vm.sh", [*RUN, *GCS_RUN, "--dry-run"], "--dry-run is this script's own: write it before --"),
        ("tpu_vm.sh", [*RUN, *GCS_RUN, "-h"], "-h after -- would print help on the workers: python -m sctd_jax.main"),
        ("babysit.sh", [*PLACE, "--poll=0", "--dry-run", *GCS_RUN], "--poll=0: seconds from 0.1 to 9999"),
        ("babysit.sh", [*PLACE, "--extra=banana", *GCS_RUN], "--extra=banana: pyproject.toml has no such extra"),
        ("babysit.sh", [*PLACE[:1], "--zone=us west", *GCS_RUN], "--zone=us west: letters a-z, digits and -"),
        ("babysit.sh", [*PLACE, "--dry-run", "--", "--workdir=gs://"], "a run that outlives its slice needs"),
        ("babysit.sh", [*PLACE, "--dry-run", "--", "--workdir=gs://b"], "a run that outlives its slice needs"),
        ("babysit.sh", [*PLACE, "--dry-run", "--", "--workdir", "runs/a"], "a run that outlives its slice needs"),
        ("babysit.sh", [*PLACE, "--dry-run", *GCS_RUN, "--workdir", "a"], "a run that outlives its slice needs"),
        ("babysit.sh", [*PLACE, "--dry-run", *GCS_RUN, "--helpfull"], "--helpfull after -- would print help on the"),
        ("ray_tpu_vm.sh", ["--name=A b", "--zone=z", "--dry-run", "--", "--out=gs://b/x"], "--name=A b: letters a-z"),
        ("ray_tpu_vm.sh", [*PLACE, "--dry-run", "--", "--out=gs://b/x", "--out=/local"], "workers of a slice share no"),
        ("ray_tpu_vm.sh", [*PLACE, "--dry-run", "--", "--text-field", "a --out=gs://b/x"], "workers of a slice share"),
        ("ray_tpu_vm.sh", [*PLACE, "--dry-run", "--", "--help", "--out=gs://b/x"], "--help after -- would print help"),
        ("ray_tpu_vm.sh", [*PLACE, "--", "--dry-run", "--out=gs://b/x"], "--dry-run is this script's own: write it"),
        ("worker.sh", ["stop", "--dry-run"], "stop takes no words, found --dry-run"),
        ("worker.sh", ["setup", "--dry-run"], "setup --dry-run: an extra of pyproject.toml is expected"),
        ("worker.sh", ["start"], "the run's own arguments are missing"),
    ],
)  # fmt: skip
def test_what_would_be_lost_or_fail_in_the_cloud_is_refused_here(cloud, tmp_path, script, arguments, message):
    status, output = cloud.run(script, *arguments, HOME=str(tmp_path / "home"))
    assert (status, len(output.splitlines())) == (2, 1), output
    assert output.startswith(f"error: {message}")
    assert not cloud.calls()
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("arguments", [["--workdir=gs://b/x"], ["--workdir", "gs://b/x"], ["-workdir", "gs://b/x"]])
@pytest.mark.parametrize("first", [[], ["--workdir=runs/a"], ["--workdir", "runs/a"]])
def test_the_last_folder_counts_however_it_is_given(cloud, arguments, first):
    for script, *options in (["babysit.sh", *PLACE, "--dry-run"], ["gke.sh", *GKE_RUN], ["tpu_vm.sh", *RUN]):
        status, output = cloud.run(script, *options, "--", "--config=c", *first, *arguments)
        assert status == 0, output
        assert "note: " not in output
    as_out = [word.replace("-workdir", "-out") for word in [*first, *arguments]]
    status, output = cloud.run("ray_tpu_vm.sh", *PLACE, "--dry-run", "--", *as_out)
    assert status == (2 if "-out" in as_out else 0), output  # prepare's parser has no such spelling


def test_a_run_that_writes_nothing_or_predicts_needs_no_workdir(cloud):
    for arguments in (["--mode=compile", "--topology=v5e:2x4"], ["--mode", "predict", "--out", "gs://b/predicted.csv"]):
        for script, *options in (["gke.sh", *GKE_RUN], ["tpu_vm.sh", *RUN]):
            status, output = cloud.run(script, *options, "--", "--config=c", *arguments)
            assert status == 0, output
            assert "note: " not in output


@pytest.mark.parametrize("arguments", [[], ["--workdir=runs/local"], ["--workdir=gs://"]])
def test_a_run_on_a_slices_own_disks_is_noted(cloud, arguments):
    status, output = cloud.run("tpu_vm.sh", *RUN, "--", "--config=c", *arguments)
    assert status == 0
    assert output.startswith("note: what the run writes on the workers is lost with the slice; --workdir=gs://BUCKET/")
    assert len(output.splitlines()) == 2


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("a\nerror: b", r"a\nerror: b"), ("\x1b[31ma", r"\E[31ma"), ("\x01\r\x7fä", r"\001\r\177ä"),
        ("\x9b31m", r"\302\23331m"), ("\u202ea\u2028", r"\342\200\256a\342\200\250"), ("*]\t?'", r"*]\t?'"),
    ],
)  # fmt: skip
def test_a_message_is_one_line_without_control_characters(cloud, hostile, shown, locale):
    for script, *arguments in (
        ["tpu_vm.sh", hostile], ["tpu_vm.sh", "state", f"--name={hostile}", "--zone=z"],
        ["tpu_vm.sh", "state", f"--{hostile}=x"], ["tpu_vm.sh", "state", *PLACE, "--", hostile],
        ["gke.sh", "status", f"--cluster={hostile}"], ["babysit.sh", *PLACE, "--", f"--workdir={hostile}"],
        ["ray_tpu_vm.sh", *PLACE, "--", "--out", hostile], ["worker.sh", "check", hostile], ["worker.sh", hostile],
    ):  # fmt: skip
        status, output = cloud.run(script, *arguments, LC_ALL=locale, HOME=str(cloud.folder / "home"))
        assert status == 2, output
        assert output.startswith("error: ") and shown in output
        assert output[:-1].isprintable() and output.endswith("\n")
    for script in ("slurm.sbatch", "ray.sbatch"):
        status, output = cloud.run(script, "--config=c", PYTHON=f"/{hostile}/python", LC_ALL=locale)
        assert (status, output.count("\n")) == (2, 2)  # the command, and the message


def babysit(cloud, poll=0.2):
    return cloud.start("babysit.sh", *PLACE, "--spot", f"--poll={poll}", *GCS_RUN)


def test_babysit_recreates_a_preempted_slice_and_ends_with_the_run(cloud):
    cloud.behave("[[ -e $FAKE_CLOUD/enough ]] || sleep 60")
    process = babysit(cloud)
    until(lambda: cloud.started(0) and cloud.started(1))
    (cloud.folder / "states").write_text("SUSPENDED\n")
    until(lambda: (cloud.folder / "gone-worker-0-0").exists())
    (cloud.folder / "enough").touch()
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    assert "slice: the slice is SUSPENDED; another one" in output
    assert "slice: WAITING_FOR_RESOURCES\nslice: PROVISIONING\nslice: ACTIVE\n" in output
    assert output.rstrip().endswith("slice: done")
    once = ["create", "scp", "setup", "start"]
    assert cloud.actions() == [*once, "delete", *once, "delete"]
    assert "--spot" in next(call for call in reversed(cloud.calls()) if call[3] == "create")


def test_babysit_runs_a_dead_run_again_and_stops_at_the_third_death(cloud):
    cloud.behave("echo out of luck; exit 1")
    process = babysit(cloud, poll=0.1)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert "three deaths" in output
    assert "out of luck" in output
    assert cloud.actions().count("start") == 3


def test_babysit_does_not_repeat_a_run_with_a_wrong_config(cloud):
    cloud.behave("echo error: config.train.steps must be positive; exit 2")
    process = babysit(cloud, poll=0.1)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 2
    assert "config.train.steps must be positive" in output
    assert cloud.actions().count("start") == 1


def test_babysit_takes_up_a_run_that_is_going_on_and_bears_a_silent_cloud_for_a_while(cloud):
    cloud.behave("until [[ -e $FAKE_CLOUD/enough ]]; do sleep 0.1; done")
    first = babysit(cloud)
    until(lambda: cloud.started(0) and cloud.started(1))
    first.kill()
    first.communicate()
    second = babysit(cloud)
    until(lambda: "slice: a run is going on" in second.stdout.readline())
    (cloud.folder / "refuse").write_text("UNAVAILABLE: try again")
    time.sleep(0.5)
    (cloud.folder / "refuse").unlink()
    (cloud.folder / "enough").touch()
    output = second.communicate(timeout=60)[0]
    assert second.returncode == 0, output
    assert cloud.actions().count("start") == 1


def test_babysit_gives_up_on_a_cloud_that_stays_silent(cloud):
    cloud.behave("sleep 5")
    process = babysit(cloud)
    until(lambda: cloud.started(0) and cloud.started(1))
    (cloud.folder / "refuse").write_text("UNAVAILABLE: try again")
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert "UNAVAILABLE: try again" in output
    assert "the cloud has refused five calls in a row" in output
    assert "may still be there and cost money: launch/tpu_vm.sh delete --name=slice" in output


def test_babysit_ends_at_once_without_a_login_and_warns_of_no_slice_that_was_never_there(cloud):
    (cloud.folder / "refuse").write_text("You do not currently have an active account selected: gcloud auth login")
    output = babysit(cloud, poll=0.1).communicate(timeout=60)[0]
    assert "gcloud auth login" in output
    assert output.rstrip().endswith(
        "the cloud refuses the first look, for the reason above; nothing has been asked for"
    )
    assert len(cloud.calls()) == 1
    # A cloud that refuses every request only: there is no slice to delete either.
    (cloud.folder / "refuse").unlink()
    (cloud.folder / "refuse-create").write_text("RESOURCE_EXHAUSTED: no quota")
    output = babysit(cloud, poll=0.1).communicate(timeout=60)[0]
    assert output.rstrip().endswith("the cloud has refused five calls in a row")
    assert "cost money" not in output
    assert "delete" not in cloud.actions()


def test_a_program_that_is_not_installed_is_named(cloud, tmp_path):
    (tmp_path / "few").mkdir()
    for name in ("bash", "dirname", "env"):
        (tmp_path / "few" / name).symlink_to(shutil.which(name))
    for script, arguments in (
        ("tpu_vm.sh", ["state", *PLACE]),
        ("babysit.sh", [*PLACE, *GCS_RUN]),
        ("gke.sh", ["status", "--cluster=c"]),
        ("ray_tpu_vm.sh", [*PLACE, "--", "--out=gs://bucket/rows"]),
    ):
        done = subprocess.run(
            [LAUNCH / script, *arguments], env={"PATH": str(tmp_path / "few")}, capture_output=True, text=True
        )
        program = "xpk" if script == "gke.sh" else "gcloud"
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: no program {program} here: ")
        assert len(done.stderr.splitlines()) == 1


def test_babysit_outlives_a_log_that_looks_like_a_status_and_three_long_runs(cloud):
    """143 is a run that has stopped and saved; the log's 2 is no exit status."""
    cloud.behave("echo step 2/1000 2 143 2/; [[ -e $FAKE_CLOUD/enough ]] || { touch $FAKE_CLOUD/enough; exit 143; }")
    process = babysit(cloud)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    assert "the run has ended with" in output


def test_babysit_replaces_a_slice_whose_machines_do_not_answer(cloud):
    cloud.behave("until [[ -e $FAKE_CLOUD/enough ]]; do sleep 0.1; done")
    process = babysit(cloud)
    until(lambda: cloud.started(0) and cloud.started(1))
    for worker in range(2):  # as when the machines are gone while the queued resource is ACTIVE
        (cloud.folder / f"worker-{worker}" / "sctd_jax").rename(cloud.folder / f"lost-{worker}")
    until(lambda: (cloud.folder / "gone-worker-1-1").exists())
    (cloud.folder / "enough").touch()
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    assert "the slice does not answer; another one" in output


def test_babysit_gives_up_on_slices_that_never_answer(cloud):
    (cloud.folder / "silent").touch()
    process = babysit(cloud, poll=0.1)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1, output
    assert "Connection timed out" in output
    assert output.count("the slice does not answer; another one") == 2
    assert "three slices in a row do not answer, or cannot be set up" in output
    assert cloud.actions().count("create") == cloud.actions().count("delete") == 3


def test_babysit_gives_up_on_requests_that_fail_and_shows_what_the_cloud_says(cloud):
    (cloud.folder / "fate").write_text("WAITING_FOR_RESOURCES\nFAILED\n")
    process = babysit(cloud, poll=0.1)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1, output
    assert output.count("stateInitiator: SERVICE") == 3
    assert "three requests in a row have failed" in output
    assert cloud.actions().count("create") == cloud.actions().count("delete") == 3


def test_babysit_bears_a_preemption_while_it_installs(cloud):
    cloud._program("python3", "[[ -e $FAKE_CLOUD/second ]] || { touch $FAKE_CLOUD/second; exit 1; }; " + INSTALL)
    process = babysit(cloud)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    assert cloud.actions().count("setup") >= 2


def test_a_second_sigterm_does_not_lose_the_exit_status(cloud):
    cloud.behave("trap 'sleep 0.5; exit 143' TERM; while true; do sleep 0.1; done")
    for command in (["create", "--poll=0.1"], ["setup"], ["run"]):
        arguments = ["--", "--config=c"] if command == ["run"] else []
        assert cloud.run("tpu_vm.sh", *command, *PLACE, *arguments)[0] == 0
    until(lambda: cloud.started(0) and cloud.started(1))
    time.sleep(0.3)
    for worker in range(2):  # a shutdown signals the shell around the run too
        pid = int((cloud.folder / f"worker-{worker}" / ".sctd_jax" / "pid").read_text())
        shell = int(re.search(r"PPid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])
        os.kill(shell, signal.SIGTERM)
        os.kill(pid, signal.SIGTERM)
        os.kill(shell, signal.SIGTERM)
    exits = [cloud.folder / f"worker-{i}" / ".sctd_jax" / "exit" for i in range(2)]
    until(lambda: all(path.exists() and path.read_text() for path in exits))
    assert [path.read_text() for path in exits] == ["143\n", "143\n"]


def test_babysit_wants_a_workdir_that_outlives_the_slice(cloud):
    for workdirs in (["--workdir=runs/base"], ["--workdir=gs://bucket/run", "--workdir=runs/base"]):
        status, output = cloud.run("babysit.sh", *PLACE, "--", "--config=configs/base.py", *workdirs)
        assert status == 2
        assert "--workdir=gs://BUCKET" in output
    assert not cloud.calls()


def test_babysit_dry_runs(cloud):
    status, output = cloud.run("babysit.sh", *PLACE, "--spot", "--dry-run", *GCS_RUN)
    assert status == 0, output
    assert not cloud.calls()
    called = [shlex.split(line)[4] for line in output.splitlines() if line.startswith("gcloud")]
    assert called == ["create", "scp", "ssh", "ssh", "ssh", "ssh", "describe", "ssh", "delete"]
    status, output = cloud.run("babysit.sh", *PLACE, "--keep", "--extra=ray", "--dry-run", *GCS_RUN)
    assert status == 0, output
    kept = [shlex.split(line) for line in output.splitlines() if line.startswith("gcloud")]
    assert [line[4] for line in kept] == called[:-1]
    assert kept[4][-1].endswith("worker.sh setup ray")


def test_gke_builds_runs_and_deletes_through_xpk(cloud):
    place = ("--cluster=my-cluster", "--zone=us-west4", "--name=base")
    for command, *arguments in (
        ["build", "--image=registry/sctd_jax:1"],
        ["run", *place, "--image=registry/sctd_jax:1", "--slices=2", "--", *ODD],
        ["status", *place],
        ["logs", *place],
        ["delete", *place],
    ):
        status, output = cloud.run("gke.sh", command, *arguments)
        assert status == 0, output
    calls = [shlex.split(line) for line in (cloud.folder / "others").read_text().splitlines()]
    assert [call[:3] for call in calls] == [
        ["docker", "build", "--build-arg"], ["docker", "push", "registry/sctd_jax:1"], ["xpk", "workload", "create"],
        ["xpk", "workload", "list"], ["kubectl", "logs", "--follow"], ["xpk", "workload", "delete"],
    ]  # fmt: skip
    assert cloud.calls() == [["container", "clusters", "get-credentials", "my-cluster", "--zone=us-west4"]]
    created = calls[2]
    assert {"--cluster=my-cluster", "--zone=us-west4", "--workload=base", "--num-slices=2"} <= set(created)
    command = shlex.split(created[-1].removeprefix("--command="))
    assert command == ["python", "-m", "sctd_jax.main", *ODD]
    status, output = cloud.run("gke.sh", "run", "--cluster=c", "--name=n", "--", "--config=c")
    assert (status, output) == (2, "error: run needs --image; see launch/gke.sh --help\n")
    for name in ("Base", "a_b", "-a", "a-", "1a", "a b", "a;b", "../a", "ä", "a" * 41):
        status, output = cloud.run("gke.sh", "delete", "--cluster=c", f"--name={name}")
        assert (status, output.count("\n")) == (2, 1)
        assert output.startswith(f"error: --name={name}: up to 40 letters a-z")


GKE = {
    "build": ["--image=registry/sctd_jax:1"],
    "run": ["--cluster=my-cluster", "--name=base", "--image=registry/sctd_jax:1", "--", *ODD],
    "status": ["--cluster=my-cluster"],
    "logs": ["--cluster=my-cluster", "--name=base"],
    "delete": ["--cluster=my-cluster", "--name=base"],
}


@pytest.mark.parametrize("command", GKE)
def test_gke_stops_with_the_message_of_what_failed(cloud, command):
    for program in ("xpk", "kubectl", "docker"):
        cloud._program(program, "echo 'cluster my-cluster not found' >&2; exit 3")
    status, output = cloud.run("gke.sh", command, *GKE[command])
    assert status == 3
    assert output.count("cluster my-cluster not found") == 1


@pytest.mark.parametrize("command", GKE)
def test_gke_dry_runs(cloud, command):
    status, output = cloud.run("gke.sh", command, "--dry-run", *GKE[command])
    assert status == 0, output
    assert not cloud.calls()
    assert not (cloud.folder / "others").exists()
    printed = [shlex.split(line) for line in output.splitlines()]
    assert {line[0] for line in printed} <= {"docker", "xpk", "gcloud", "kubectl"}
    if command == "run":
        assert shlex.split(printed[-1][-1].removeprefix("--command="))[-3:] == list(ODD)


PREPARE = ("--", "--input=gs://bucket/a'b text/**/*.jsonl.gz", "--out", "gs://bucket/rows")


@pytest.fixture
def slice_for_ray(cloud):
    """A slice of two workers whose Ray writes down what it is told."""
    install = INSTALL + '; echo "$@" >> ~/installed; ln -sf "$(command -v recorded-ray)" .venv/bin/ray'
    cloud._program("python3", install)
    cloud._program("recorded-ray", 'echo "$@" >> ~/ray')
    cloud._program(
        "hostname", "case $HOME in *worker-0) echo 10.0.0.2 172.17.0.1 ;; *) echo 10.0.0.23 172.17.0.1 ;; esac"
    )
    assert cloud.run("tpu_vm.sh", "create", *PLACE, "--poll=0.1")[0] == 0
    return cloud


def test_ray_runs_on_all_workers_while_worker_0_prepares(slice_for_ray):
    status, output = slice_for_ray.run("ray_tpu_vm.sh", *PLACE, *PREPARE)
    assert status == 0, output
    homes = [slice_for_ray.folder / f"worker-{i}" for i in range(2)]
    told = [(home / "ray").read_text().splitlines() for home in homes]
    assert told[0] == ["start --head --port=6379 --disable-usage-stats", "stop"]
    assert told[1] == ["start --address=10.0.0.2:6379", "stop"]
    for home in homes:
        assert (home / "installed").read_text().rstrip().endswith("--extra tpu --extra ray")
    ran = [(i, call) for i in range(2) for call in slice_for_ray.started(i)]
    assert ran == [(0, ["-m", "sctd_jax.data.prepare", *PREPARE[1:], "--ray=auto"])]


def test_ray_is_stopped_where_the_preparation_fails_and_installed_once(slice_for_ray):
    assert slice_for_ray.run("ray_tpu_vm.sh", *PLACE, *PREPARE)[0] == 0
    slice_for_ray.behave("echo error: no text; exit 2")
    status, output = slice_for_ray.run("ray_tpu_vm.sh", *PLACE, "--no-setup", *PREPARE)
    assert status != 0
    assert "error: no text" in output
    for i in range(2):
        told = (slice_for_ray.folder / f"worker-{i}" / "ray").read_text().splitlines()[2:]
        assert [line.split()[0] for line in told] == ["stop", "start", "stop"]
        installed = (slice_for_ray.folder / f"worker-{i}" / "installed").read_text()
        assert installed.count("--extra ray") == 1


def test_preparation_on_a_slice_dry_runs(cloud):
    status, output = cloud.run("ray_tpu_vm.sh", *PLACE, "--project=mine", "--dry-run", *PREPARE)
    assert status == 0, output
    assert not cloud.calls()
    printed = [shlex.split(line) for line in output.splitlines()]
    assert all("--project=mine" in line for line in printed if line[0] == "gcloud")
    told = [shlex.split(line[-1].removeprefix("--command=")) for line in printed if line[-1].startswith("--command=")]
    assert [line[0] for line in told] == [
        "bash",
        "bash",
        "tar",
        "bash",
        "sctd_jax/.venv/bin/ray",
        "bash",
        "env",
        "bash",
    ]
    assert told[-2] == [
        "env",
        "-C",
        "sctd_jax",
        ".venv/bin/python",
        "-m",
        "sctd_jax.data.prepare",
        *PREPARE[1:],
        "--ray=auto",
    ]


def test_the_job_of_kuberay_has_the_ray_of_its_image_and_a_command():
    job = yaml.safe_load((LAUNCH / "rayjob.yaml").read_text())["spec"]
    pins = (LAUNCH / "constraints.txt").read_text().splitlines()
    version = job["rayClusterSpec"]["rayVersion"]
    assert f"ray=={version}" in pins
    assert f"FROM rayproject/ray:{version}-py313-cpu\n" in (LAUNCH / "Dockerfile.ray").read_text()
    assert "--python-version 3.13 " in (helpers.ROOT / "Makefile").read_text()
    python, run, module, *options = shlex.split(job["entrypoint"])
    assert (python, run, module) == ("python", "-m", "sctd_jax.data.prepare")
    assert [option.split("=")[0] for option in options] == ["--ray", "--input", "--out"]
    groups = [job["rayClusterSpec"]["headGroupSpec"], *job["rayClusterSpec"]["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"] == "IMAGE"
        assert container["resources"]["limits"] == container["resources"]["requests"]  # Ray takes its cores from these


def test_what_images_and_slices_install_is_pinned_whole_and_within_the_tested_ranges():
    project = tomllib.loads((helpers.ROOT / "pyproject.toml").read_text())["project"]
    lines = (LAUNCH / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    normal = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    for text in [*project["dependencies"], *project["optional-dependencies"]["ray"]]:
        asked = Requirement(text)
        assert asked.specifier.contains(normal[asked.name.lower().replace("_", "-")]), text
    assert {"libtpu", "jax-cuda13-plugin"} <= normal.keys()
    assert normal["jax"] == normal["jaxlib"] == normal["jax-cuda13-plugin"]


def test_a_slice_and_an_image_install_the_same_for_the_same_python(cloud, tmp_path):
    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    shutil.copytree(LAUNCH, tmp_path / "launch")
    (tmp_path / "pyproject.toml").symlink_to(helpers.ROOT / "pyproject.toml")
    cloud._program("python3", f'printf "%q " "$@" >> {tmp_path}/asked; echo >> {tmp_path}/asked; {INSTALL}')
    worker = ["bash", "launch/worker.sh", "setup"]
    for command, extra in ((["bash", "-c", task["setup"]], "cuda"), (worker, "tpu")):
        (tmp_path / "asked").unlink(missing_ok=True)
        env = cloud.environment() | {"ACCELERATOR": extra, "SCTD_JAX_STATE": str(tmp_path / "state")}
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        _, environment, install = [shlex.split(line) for line in (tmp_path / "asked").read_text().splitlines()]
        options = dict(zip(words := install[4:], words[1:], strict=False))
        python = environment[environment.index("--python") + 1]
        assert options["--extra"] == extra
        for file in (options["--constraint"], options["--requirement"]):
            assert (tmp_path / file).is_file()
    image = (LAUNCH / "Dockerfile").read_text()
    assert f"FROM python:{python}-slim\n" in image
    assert "--constraint launch/constraints.txt --requirement pyproject.toml --extra" in image
    assert f"--python-version {python} " in (helpers.ROOT / "Makefile").read_text()
    extras = tomllib.loads((helpers.ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = re.findall(r"ACCELERATOR[=:] ?(\w+)", image + (LAUNCH / "sky.yaml").read_text())
    assert set(asked) == {"tpu", "cuda"} <= extras.keys()


def test_the_sky_recipe_runs_the_command_with_its_environment(cloud, tmp_path):
    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    assert task["resources"]["use_spot"] is True
    assert task["resources"]["accelerators"] == "tpu-v5litepod-8"
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(cloud.programs / "trainer", tmp_path / ".venv" / "bin" / "python")
    given = {"WORKDIR": "gs://bucket/a run", "ROWS": "gs://bucket/rows", "HOME": str(tmp_path)}
    env = {**cloud.environment(), **task["envs"], **given}
    done = subprocess.run(["bash", "-c", task["run"]], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert shlex.split((tmp_path / "started").read_text()) == [
        "-m", "sctd_jax.main", "--config=configs/base.py", "--workdir=gs://bucket/a run",
        "--config.data.rows=gs://bucket/rows",
    ]  # fmt: skip
    refusals = {
        "ROWS": ("",), "WORKDIR": ("runs/a\nb", "gs://", "gs://bucket"),
        "ARGUMENTS": ("--workdir=/tmp/x", "--config.train.steps=2 -workdir /tmp/x"),
    }  # fmt: skip
    for name, value in ((name, value) for name, values in refusals.items() for value in values):
        wrong = env | {name: value}
        refused = subprocess.run(["bash", "-c", task["run"]], env=wrong, cwd=tmp_path, capture_output=True)
        assert refused.returncode == 2
        assert f"--env {'WORKDIR' if name == 'ARGUMENTS' else name}=gs://".encode() in refused.stderr
        assert refused.stderr.count(b"\n") == 1


def test_every_script_has_its_help_which_does_nothing_else(tmp_path):
    for name, *command in (
        ["tpu_vm.sh"], ["tpu_vm.sh", "create"], ["babysit.sh"], ["babysit.sh", "--spot"], ["gke.sh"], ["gke.sh", "run"],
        ["worker.sh"], ["slurm.sbatch"], ["ray.sbatch"], ["ray_tpu_vm.sh"],
    ):  # fmt: skip
        env = {**os.environ, "HOME": str(tmp_path)}
        done = subprocess.run(
            ["bash", LAUNCH / name, *command, "--help"], env=env, cwd=tmp_path, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, ""), name
        assert name in done.stdout
        assert "set -euo" not in done.stdout and "#SBATCH" not in done.stdout
        assert not list(tmp_path.iterdir()), name
