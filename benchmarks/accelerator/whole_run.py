"""`sctd_jax.main` from rows to the last checkpoint: once without interruption, once killed and resumed.

Each run is a process. This one keeps to the CPU, so that a run has the whole device, and in the end compares the two
runs' last checkpoints. The runs share a folder of compiled programs: the same program is what a resume is judged by.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from benchmarks.accelerator.comparing import differing
from benchmarks.accelerator.part import Bench
from benchmarks.accelerator.rows import prepare_rows
from sctd_jax.parallel import mesh as meshes
from sctd_jax.train.checkpoint import Checkpoints
from sctd_jax.train.metrics import read_metrics
from sctd_jax.train.workdir import CHECKPOINTS

ROOT = Path(__file__).parents[2]
_FIELDS = ("params", "opt_state", "importance_V")

_FULL = {
    "model.attention_dropout": 0.0, "train.batch_size": 64, "train.steps": 200, "train.checkpoint_every": 50,
    "train.eval_every": 50, "train.eval_rows": 128, "train.log_every": 10, "optimizer.warmup_steps": 20,
}  # fmt: skip
# Steps enough that the run is still under way when its first checkpoint is on disk and it is killed.
_SMOKE = {
    "model.vocab_size": 512, "model.num_layers": 4, "model.hidden_size": 32, "model.num_heads": 4,
    "model.intermediate_size": 64, "model.max_positions": 32, "model.dtype": "float32", "data.seq_len": 32,
    "dropping.method": "drop", "train.batch_size": 8, "train.steps": 600, "train.checkpoint_every": 50,
    "train.eval_every": 50, "train.eval_rows": 8, "train.log_every": 10, "train.keep_checkpoints": 1,
    "optimizer.warmup_steps": 20,
}  # fmt: skip


def run(bench: Bench) -> Iterator[str]:
    """Lines of the part."""
    jax.config.update("jax_platforms", "cpu")
    settings = _SMOKE if bench.smoke else _FULL
    report: dict[str, Any] = {"config": "configs/base.py", "settings": settings}

    def save(**values: Any) -> None:
        report.update(values)
        bench.save("whole_run", report)

    with tempfile.TemporaryDirectory(prefix="accelerator-", ignore_cleanup_errors=True) as name:
        work = Path(name)
        length, vocab_size = settings.get("data.seq_len", 512), settings.get("model.vocab_size", 30522)
        rows, seconds = prepare_rows(bench, work / "rows", length, vocab_size)
        save(rows=rows, preparing_seconds=seconds)

        whole, began = work / "whole", time.monotonic()
        log, seconds = finish(bench, start(work, whole, settings), whole)
        save(uninterrupted=measured(whole, log) | {"process_seconds": seconds})
        yield run_line(report["uninterrupted"], settings)
        yield wait_line(report["uninterrupted"]["batch_wait_share"])

        took = time.monotonic() - began
        if not bench.smoke and bench.left() < 1.5 * took:
            save(left_out_for_time=["kill and resume"])
            yield f"kill and resume: left out for time ({bench.left():.0f} s were left)"
            return
        cut = work / "cut"
        killed = kill_after_checkpoint(bench, start(work, cut, settings), cut)
        before = [line for line in read_metrics(epath.Path(cut)) if line["step"] <= killed]
        log, seconds = finish(bench, start(work, cut, settings), cut)
        resumed = resumed_at(log)
        save(killed_at_step=killed, resumed_at_step=resumed, resumed=measured(cut, log) | {"process_seconds": seconds})
        report["losses_before_the_kill"] = same_losses(before, read_metrics(epath.Path(whole)))
        apart = differing(*(final_state(folder, settings["train.steps"]) for folder in (cut, whole)))
        save(differs_from_uninterrupted=apart, bit_equal=not apart)
        yield resume_line(report)


def start(work: Path, workdir: Path, settings: Mapping[str, Any]) -> subprocess.Popen:
    """A run; its output goes to a file beside the workdir."""
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    command = [
        sys.executable, "-m", "sctd_jax.main", "--config=configs/base.py", f"--config.data.rows={work / 'rows'}",
        f"--workdir={workdir}", *flags,
    ]  # fmt: skip
    cache = {"JAX_COMPILATION_CACHE_DIR": str(work / "programs"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    with _log_file(workdir).open("w") as log:
        return subprocess.Popen(command, cwd=ROOT, env={**cache, **os.environ}, stdout=log, stderr=subprocess.STDOUT)


def finish(bench: Bench, process: subprocess.Popen, workdir: Path) -> tuple[str, float]:
    """Output and seconds of a run that ends by itself, with status 0.

    Raises:
      RuntimeError: it has not.
    """
    began = time.monotonic()
    try:
        status = process.wait(max(bench.left(), 1))
    except subprocess.TimeoutExpired:
        status = "no status: time was over"
    finally:
        process.kill()
        process.wait()
    log = _log_file(workdir).read_text(errors="replace")
    if status != 0:
        raise RuntimeError(f"the run of {workdir.name} ended with {status}; its last lines:\n" + _tail(log))
    bench.log(f"{workdir.name}: ended after {time.monotonic() - began:.0f} s")
    return log, time.monotonic() - began


def kill_after_checkpoint(bench: Bench, process: subprocess.Popen, workdir: Path) -> int:
    """Kill a run by SIGKILL once a checkpoint is on disk; the last step that its metrics have."""
    try:
        while process.poll() is None and bench.left() > 0:
            # Orbax gives a checkpoint its name once it is whole.
            if any(path.name.isdigit() for path in (workdir / CHECKPOINTS).glob("*")):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.01)
    finally:
        process.kill()
        status = process.wait()
    if status != -signal.SIGKILL:
        log = _log_file(workdir).read_text(errors="replace")
        raise RuntimeError(f"the run to be killed had ended with status {status}; its last lines:\n" + _tail(log))
    lines = read_metrics(epath.Path(workdir))
    bench.log(f"killed at step {lines[-1]['step']}")
    return lines[-1]["step"]


def _log_file(workdir: Path) -> Path:
    return workdir.with_name(f"{workdir.name}.log")


def _tail(log: str) -> str:
    return "\n".join(log.splitlines()[-30:])


def measured(workdir: Path, log: str) -> dict[str, Any]:
    """Medians of the windows of a run's metrics, its evaluations, and the seconds it compiled."""
    lines = read_metrics(epath.Path(workdir))
    compiled = re.search(r"^compiled (.*) in (\d+) s$", log, re.M)
    medians: dict[str, float | None] = {}
    for name in ("step_seconds", "tokens_per_second", "mfu", "batch_wait_share"):
        values = [line[f"train/{name}"] for line in lines if f"train/{name}" in line]
        medians[name] = float(np.median(values)) if values else None
    return medians | {
        "programs": compiled[1] if compiled else None,
        "compile_seconds": int(compiled[2]) if compiled else None,
        "evaluations": [{"step": line["step"], "loss": line["eval/loss"]} for line in lines if "eval/loss" in line],
        "attention": found[1].strip() if (found := re.search(r"^ *attention  (.*)$", log, re.M)) else None,
    }


def resumed_at(log: str) -> int:
    """Step at which a run says it resumes."""
    found = re.search(r"^resuming at step ([\d,]+)$", log, re.M)
    if not found:
        raise RuntimeError("the second run has not resumed; its first lines:\n" + "\n".join(log.splitlines()[:30]))
    return int(found[1].replace(",", ""))


def same_losses(before: Sequence[Mapping], whole: Sequence[Mapping]) -> dict[str, Any]:
    """Whether the two runs had the same losses before one was killed: what a resume cannot be better than."""
    expected = {line["step"]: line["train/loss"] for line in whole if "train/loss" in line}
    pairs = [(line["train/loss"], expected[line["step"]]) for line in before if line.get("train/loss") is not None]
    return {
        "compared": len(pairs),
        "equal": all(ours == theirs for ours, theirs in pairs),
        "largest_relative_difference": max((abs(ours / theirs - 1) for ours, theirs in pairs), default=None),
    }


def final_state(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """The checkpoint of a step, by leaf."""
    checkpoints = Checkpoints(epath.Path(workdir), read_only=True)
    try:
        found = checkpoints.restore_parts(_FIELDS, meshes.one_device(), print, step)
    finally:
        checkpoints.close()
    if found is None:
        raise RuntimeError(f"{workdir} has no checkpoint of step {step}")
    leaves = jax.tree_util.tree_leaves_with_path(found[1])
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def run_line(found: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The uninterrupted run in a line."""
    shape = f"{settings['train.batch_size']} rows"
    mfu = f", MFU {found['mfu']:.1%}" if found["mfu"] is not None else ""
    first, last = found["evaluations"][0], found["evaluations"][-1]
    return (
        f"{settings['train.steps']} steps of {shape}: {1e3 * found['step_seconds']:.1f} ms a step, "
        f"{found['tokens_per_second']:,.0f} tokens/s{mfu}; compiled in {found['compile_seconds']} s, process "
        f"{found['process_seconds']:.0f} s; held-out loss {first['loss']:.3f} -> {last['loss']:.3f}"
    )


def wait_line(share: float) -> str:
    """Share of the time that the loop waited for batches, which the loader makes while the device works."""
    return f"the loop waited for its next batch for {share:.1%} of the time of its steps (median of the windows)"


def resume_line(report: Mapping[str, Any]) -> str:
    """The killed run in a line."""
    line = f"killed by SIGKILL after step {report['killed_at_step']}, resumed at {report['resumed_at_step']}: "
    apart, before = report["differs_from_uninterrupted"], report["losses_before_the_kill"]
    if not apart:
        return line + "parameters, moments and importance bit-equal to the uninterrupted run's"
    most = max(apart, key=apart.__getitem__)
    same = "the same" if before["equal"] else f"{before['largest_relative_difference']:.0e} apart"
    return (
        f"{line}{len(apart)} leaves differ from the uninterrupted run's, most {most} by {apart[most]:.0e} of its "
        f"largest number; before the kill the losses were {same}"
    )
