"""Launch scripts against recording stand-ins for the programs that they call."""

import os
import shlex
import shutil
import subprocess
import sys

import pytest

from tests import helpers

SBATCH = helpers.ROOT / "launch" / "slurm.sbatch"
RAY_SBATCH = helpers.ROOT / "launch" / "ray.sbatch"


@pytest.fixture
def cluster(tmp_path):
    """Run the Slurm script where srun and scontrol write down what they are called with; returns (result, calls)."""

    def run(*args, srun_status=0, script=SBATCH, **environment):
        calls = tmp_path / "calls"
        for name, status in (("srun", srun_status), ("scontrol", 0)):
            program = tmp_path / name
            program.write_text(f'#!/bin/bash\nprintf "%q " {name} "$@" >> {calls}\necho >> {calls}\nexit {status}\n')
            program.chmod(0o755)
        # Bash counts SECONDS on from what it finds.
        environment = {"PYTHON": sys.executable, "SLURM_JOB_ID": "77", "SECONDS": "3600"} | environment
        path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        result = subprocess.run(
            [shutil.which("bash"), script, *args],
            env=path | environment,
            cwd=helpers.ROOT,
            capture_output=True,
            text=True,
        )
        return result, [shlex.split(line) for line in calls.read_text().splitlines()] if calls.exists() else []

    return run


ODD = ("--config=configs/base.py", "--workdir=/shared/my runs/a'b", "--config.data.input=text/**/*.txt")


def test_every_task_of_the_job_runs_main_with_the_arguments_as_they_are(cluster):
    result, calls = cluster(*ODD)
    assert result.returncode == 0, result.stderr
    assert calls == [["srun", "--kill-on-bad-exit=1", sys.executable, "-m", "sctd_jax.main", *ODD]]


def test_a_run_that_has_stopped_and_saved_goes_back_into_the_queue(cluster):
    result, calls = cluster("--config=configs/base.py", srun_status=143)
    assert result.returncode == 0
    assert calls[1:] == [["scontrol", "requeue", "77"]]


def test_a_run_that_is_stopped_at_once_does_not_go_round_for_ever(cluster):
    """srun answers 143 too where one process refuses its config and the others are ended while they start."""
    result, calls = cluster("--config=configs/base.py", srun_status=143, SECONDS="30")
    assert result.returncode == 143
    assert "stopped within five minutes" in result.stdout
    assert len(calls) == 1


def test_a_run_that_has_failed_does_not(cluster):
    result, calls = cluster("--config=configs/base.py", srun_status=2)
    assert result.returncode == 2
    assert len(calls) == 1


def test_a_dry_run_prints_the_command_and_runs_nothing(cluster):
    result, calls = cluster(*ODD, DRY_RUN="1")
    assert shlex.split(result.stdout) == ["srun", "--kill-on-bad-exit=1", sys.executable, "-m", "sctd_jax.main", *ODD]
    assert not calls


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--config=configs/base.py"], {"PYTHON": "/nowhere/python"}, "pip install -c launch/constraints.txt"),
        (["--config=configs/base.py"], {"PATH": "/nowhere"}, "no program srun here: this is a job for Slurm"),
        ([], {}, "the run's own arguments are missing"),
    ],
)
def test_what_is_missing_is_said_and_nothing_is_called(cluster, arguments, environment, message):
    result, calls = cluster(*arguments, **environment)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not calls


PREPARE = ("--input=/shared/a'b text/**/*.jsonl.gz", "--out=/shared/rows")


@pytest.fixture
def ray_programs(tmp_path):
    """A folder of an installation with `ray`."""
    (tmp_path / "venv").mkdir()
    for name in ("python", "ray"):
        (tmp_path / "venv" / name).symlink_to(shutil.which("true"))
    return tmp_path / "venv"


@pytest.mark.parametrize("status", [0, 2])
def test_ray_starts_on_all_nodes_of_a_job_and_the_first_prepares(cluster, ray_programs, status):
    """As `sbatch --nodes=8 launch/ray.sbatch` does; its status is the command's."""
    python = str(ray_programs / "python")
    job = {"SLURM_JOB_NUM_NODES": "8", "SLURMD_NODENAME": "node17", "SLURM_CPUS_ON_NODE": "64", "PYTHON": python}
    command = [
        "srun", "--cpus-per-task=64", str(ray_programs / "ray"), "symmetric-run", "--address=node17:6379",
        "--min-nodes=8", "--num-cpus=64", "--disable-usage-stats", "--", python, "-m", "sctd_jax.data.prepare",
        *PREPARE, "--ray=auto",
    ]  # fmt: skip
    result, calls = cluster(*PREPARE, script=RAY_SBATCH, srun_status=status, **job)
    assert result.returncode == status, result.stderr
    assert calls == [command]
    result, calls = cluster(*PREPARE, script=RAY_SBATCH, DRY_RUN="1", **job)
    assert shlex.split(result.stdout) == command
    assert len(calls) == 1  # the one before


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (PREPARE, {"PYTHON": "/nowhere/python"}, "pip install -c launch/constraints.txt '.[ray]'"),
        (PREPARE, {"PATH": "/nowhere"}, "no program srun here: this is a job for Slurm"),
        ([], {}, "the arguments of sctd_jax.data.prepare are missing"),
    ],
)
def test_what_a_job_of_ray_lacks_is_said_and_nothing_is_called(cluster, ray_programs, arguments, environment, message):
    if "PATH" in environment:
        (ray_programs / "dirname").symlink_to(shutil.which("dirname"))
        environment = {"PATH": str(ray_programs)}
    result, calls = cluster(*arguments, script=RAY_SBATCH, **{"PYTHON": str(ray_programs / "python")} | environment)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not calls


@pytest.mark.parametrize("in_environment", [True, False])
def test_makes_own_variable_for_the_python_to_install_is_not_the_scripts_for_the_one_to_run(in_environment):
    """launch/ starts the run with $PYTHON, where that is set."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "--no-print-directory", "-f", "-", "show"]
    if in_environment:
        environment["PYTHON"] = "python3.99"
    else:
        command += ["PYTHON=python3.99"]
    rules = "include Makefile\nshow:\n\t@echo '$(PYTHON)' \"$${PYTHON-unset}\"\n"
    done = subprocess.run(
        command, input=rules, env=environment, cwd=helpers.ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "python3.99 unset\n"


def test_the_benchmark_of_a_gpu_takes_the_machines_own_python_and_no_flags_from_launchs_variables():
    """launch/ and its images name their stack by $ACCELERATOR."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "--no-print-directory", "--dry-run", "accelerator"]
    said = [
        subprocess.run(
            [*command, *own], env=environment | {"ACCELERATOR": "cuda"}, cwd=helpers.ROOT, capture_output=True,
            text=True, check=True,
        ).stdout.splitlines()
        for own in (["DEVICE_PYTHON=python3"], ["--assume-new=requirements.txt"])
    ]  # fmt: skip
    flags = "-m benchmarks.accelerator --minutes 8 --out runs/accelerator"
    assert said[0] == [f"python3 {flags}"]
    assert any('"jax[cuda13]"' in line for line in said[1])
    assert said[1][-1] == f".venv-cuda/bin/python {flags}"
