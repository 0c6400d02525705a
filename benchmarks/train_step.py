"""Seconds, tokens/s, FLOP/s and memory of a training step of each kind, interleaved in one run.

python benchmarks/train_step.py [--config configs/tiny.py] [--repeats 7] [--peer pytorch] [--out DIR] [--smoke]
python benchmarks/train_step.py --config configs/modern/base.py --smoke
python benchmarks/train_step.py --arena configs/arena/small.py:ROWS [--repeats 7] [--out docs/study]

Without --config: 12 layers x 256 (V 8192, N 128, K 64, P 19, batch 16, dropout 0.1, f32), then BERT-base, the time to
compile configs/base.py, and the table of targets in docs/performance.md. A recipe that accumulates is timed at the
rows of one microbatch. Rows are random ids on one device. Medians, with the spread; only ratios within one run count,
absolute times drift. --peer wants torch and transformers: `make peer`. --smoke runs it all in seconds, at toy sizes.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import arena_step_time
from configs import base
from sctd_jax import recipes
from sctd_jax.arguments import CommandParser, number
from sctd_jax.config import Config, from_dict
from sctd_jax.data.special import SpecialIds
from sctd_jax.errors import UserError, run_command
from sctd_jax.huge_pages import restart_with_huge_pages
from sctd_jax.model.attention import platform_of
from sctd_jax.objective.masking import MaskedBatch
from sctd_jax.parallel import mesh as meshes
from sctd_jax.pretrain import step
from sctd_jax.pretrain.flops import plain_step_flops, step_flops
from sctd_jax.pretrain.model import initial_state, settle, state_layout
from sctd_jax.pretrain.report import matmul_flops_per_second
from sctd_jax.pretrain.step import compile_programs, compile_train_step, mask_batch, programs_needed
from sctd_jax.train.step import peak_bytes

ROOT = Path(__file__).parents[1]
SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)
PLAIN, FULL, DROP, CONSISTENCY, AVERAGE, PEER = "plain full", "full", "drop", "consistency", "ScTD average", "PyTorch"
OURS = (PLAIN, FULL, DROP, CONSISTENCY)
# Targets of a recipe with a peer.
OF_A_RECIPE = (("own full step / PyTorch full step", FULL, 0.9), ("ScTD average / PyTorch full step", AVERAGE, 0.7))


@dataclasses.dataclass(frozen=True)
class Timing:
    """One setting's figures."""

    title: str
    config: Config
    seconds: dict[str, np.ndarray]  # seconds by kind of step, one per repeat
    flops: dict[str, float]
    memory: dict[str, int]  # bytes
    compile_seconds: dict[str, float]  # tracing included
    peer: str  # versions of the peer, or ''

    def ratio(self, kind: str, reference: str) -> tuple[float, float, float]:
        """Median, lowest and highest ratio within a repeat."""
        ratios = self.seconds[kind] / self.seconds[reference]
        return float(np.median(ratios)), float(ratios.min()), float(ratios.max())


def small_config() -> Config:
    """12 x 256: the setting in which the peers were seen."""
    values = base.get_config()
    values.model.update(
        vocab_size=8192, hidden_size=256, num_heads=4, intermediate_size=1024, max_positions=128, dtype="float32"
    )
    values.data.seq_len = 128
    values.train.batch_size = 16
    return one_device(values)


def base_config() -> Config:
    """BERT-base, two rows of 512."""
    values = base.get_config()
    values.model.dtype = "float32"
    values.train.batch_size = 2
    return one_device(values)


def file_config(path: str) -> tuple[str, Config]:
    """A recipe's title and config: with ScTD, so that every kind of step exists, and with one microbatch's rows.

    A peer has no microbatches, and all rows at once may not fit. A consistency step that has more of them keeps those.
    """
    values = recipes.load(path)
    if "train" not in recipes.modes(values):
        raise UserError(f"--config={path} is no recipe for pretraining")
    train, parts = values.train, values.train.accumulation
    (own, left), rows = divmod(train.consistency_accumulation, parts), train.batch_size // parts
    train.update(batch_size=rows, batch_schedule="", accumulation=1, consistency_accumulation=0 if left else own)
    share = f", one of its {parts} microbatches: {rows} rows, with an update of their own" if parts > 1 else ""
    return path + share, one_device(values)


def one_device(values) -> Config:
    """A recipe's ConfigDict as an ScTD run on the first device."""
    values.mesh.data = 1
    values.dropping.method = "sctd"
    return settle(from_dict(values.to_dict()), platform_of(jax.devices()[0]))[0]


def toy(config: Config) -> Config:
    """The recipe at a size at which nothing is measured, and everything runs in seconds."""
    sizes = {"vocab_size": 512, "num_layers": 2, "hidden_size": 32, "num_heads": 4, "intermediate_size": 64}
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **sizes, max_positions=32),
        data=dataclasses.replace(config.data, seq_len=32),
        train=dataclasses.replace(config.train, batch_size=4, accumulation=1, consistency_accumulation=0),
    )


def compile_step(config: Config, mesh, kind: str) -> jax.stages.Compiled:
    """One kind of step; the plain one computes all rows of the last layer, as BERT implementations do."""
    variant = FULL if kind == PLAIN else kind
    with mock.patch.object(step, "needs_all_rows", (lambda *_: True) if kind == PLAIN else step.needs_all_rows):
        return compile_train_step(config, SPECIAL, variant, mesh, state_layout(config, SPECIAL, mesh))


def peer_python() -> Path | None:
    """A Python that has torch and transformers: this one, or that of `make peer` or `make interop`; or None."""
    if all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        return Path(sys.executable)
    environments = (ROOT / name / "bin" / "python" for name in (".venv-peer", ".venv-interop"))
    return next(filter(Path.is_file, environments), None)


class Peer:
    """benchmarks/peer_pytorch.py on a config's shapes and on masked rows, asleep between its steps.

    Raises UserError where it fails, with the last line that it has said.
    """

    def __init__(self, config: Config, python: Path, batch: MaskedBatch):
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        names = ("input_ids_BN", "positions_BP", "targets_BP")
        with tempfile.NamedTemporaryFile(suffix=".npz") as file:
            np.savez(file, **{name: np.asarray(getattr(batch, name)) for name in names})
            file.flush()
            sizes = dataclasses.asdict(config.model) | {
                "batch_size": config.train.batch_size,
                "seq_len": config.data.seq_len,
                "device": "cuda" if jax.default_backend() == "gpu" else "cpu",
                "batch": file.name,
            }
            command = [python, ROOT / "benchmarks" / "peer_pytorch.py", json.dumps(sizes)]
            # Started as a user of PyTorch would: without our setting of the allocator, which does not help it.
            environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment
            )
            self.facts = self._read()

    def steps(self, count: int) -> float:
        """Seconds of one of so many steps, the clock read at both ends; `facts` then has the bytes it needed."""
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        self.facts |= self._read()
        return self.facts["seconds"]

    def _read(self) -> dict:
        if line := self._process.stdout.readline():
            return json.loads(line)
        status = self._process.wait()
        self._log.seek(0)
        said = self._log.read().strip().splitlines() or ["it said nothing"]
        self.close()
        raise UserError(f"the peer, benchmarks/peer_pytorch.py, ended with status {status}: {said[-1]}")

    def close(self) -> None:
        """End the process."""
        for file in (self._process.stdin, self._process.stdout, self._log):
            file.close()
        self._process.wait()


def measure(
    title: str, config: Config, kinds: tuple[str, ...], repeats: int, peer_python: Path | None, steps: int = 1
) -> Timing:
    """Every repeat times so many steps of each kind, one kind after the other, on one state.

    An accelerator runs them one behind the other as in training, the clock read at both ends.
    """
    mesh = meshes.make_mesh(config.mesh)
    rng = np.random.default_rng(0)
    rows = rng.integers(5, config.model.vocab_size, (config.train.batch_size, config.data.seq_len), dtype=np.int32)
    rows[:, 0], rows[:, -1] = SPECIAL.cls, SPECIAL.sep
    tokens = meshes.put_batch(mesh, len(rows), rows)
    with contextlib.ExitStack() as stack:
        # Ready and asleep before ours is compiled: on a GPU XLA times kernels meanwhile.
        peer = None
        if peer_python:
            batch = mask_batch(config, SPECIAL, jax.random.key(0), tokens)
            peer = stack.enter_context(contextlib.closing(Peer(config, peer_python, batch)))
        compiled, compile_seconds = {}, {}
        for kind in kinds:
            started = time.perf_counter()
            compiled[kind] = compile_step(config, mesh, kind)
            compile_seconds[kind] = time.perf_counter() - started
        layout = state_layout(config, SPECIAL, mesh)
        state = jax.jit(lambda: initial_state(config, SPECIAL), out_shardings=meshes.shardings(layout))()

        def ours(kind: str) -> float:
            nonlocal state
            started = time.perf_counter()
            for _ in range(steps):
                state, metrics = compiled[kind](state, tokens)
            jax.block_until_ready((state.params, metrics))
            return (time.perf_counter() - started) / steps

        runs: dict[str, Callable[[], float]] = {kind: lambda kind=kind: ours(kind) for kind in kinds}
        if peer:
            runs[PEER] = lambda: peer.steps(steps)
        for run in runs.values():
            run()
        found = [{kind: run() for kind, run in runs.items()} for _ in range(repeats)]
    seconds = {kind: np.array([values[kind] for values in found]) for kind in runs}
    flops = {kind: plain_step_flops(config) if kind == PLAIN else step_flops(config, kind) for kind in kinds}
    interval = config.dropping.sc_interval
    if CONSISTENCY in kinds:
        for values in (seconds, flops):
            values[AVERAGE] = ((interval - 1) * values[DROP] + values[CONSISTENCY]) / interval
    memory = {kind: peak_bytes(compiled[kind]) for kind in kinds}
    if peer:
        flops[PEER] = plain_step_flops(config)
        for values, name in ((memory, "peak_bytes"), (compile_seconds, "compile_seconds")):
            if peer.facts[name] is not None:
                values[PEER] = peer.facts[name]
    return Timing(title, config, seconds, flops, memory, compile_seconds, peer.facts["versions"] if peer else "")


def seconds_to_compile(config: Config) -> float:
    """All variants of a config, as `main` compiles them, tracing included."""
    started = time.perf_counter()
    mesh = meshes.make_mesh(config.mesh)
    compile_programs(programs_needed(config), SPECIAL, mesh, state_layout(config, SPECIAL, mesh))
    return time.perf_counter() - started


def print_timing(timing: Timing, matmul: float) -> None:
    """A table of one setting; `matmul` is the measured FLOP/s of a plain product."""
    config, plain = timing.config, plain_step_flops(timing.config)
    tokens = config.train.batch_size * config.data.seq_len
    print(f"\n{timing.title}" + (f"; peer: {timing.peer}" if timing.peer else ""))
    heads = ("step", "seconds", "spread", "of plain", "by FLOPs", "tokens/s", "GFLOP/s", "of matmul", "MiB")
    print("{:>14} {:>8} {:>13} {:>8} {:>8} {:>9} {:>8} {:>9} {:>7}".format(*heads))
    for kind, values in timing.seconds.items():
        median, rate = float(np.median(values)), timing.flops[kind] / float(np.median(values))
        of_plain = f"{timing.ratio(kind, PLAIN)[0]:.2f}" if PLAIN in timing.seconds else ""
        memory = f"{timing.memory[kind] / 2**20:,.0f}" if kind in timing.memory else ""
        print(
            f"{kind:>14} {median:8.3f} {f'{values.min():.3f}-{values.max():.3f}':>13} {of_plain:>8} "
            f"{timing.flops[kind] / plain:8.2f} {tokens / median:9,.0f} {rate / 1e9:8.0f} {rate / matmul:9.2f} "
            f"{memory:>7}"
        )


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table of targets."""

    what: str
    found: float
    spread: tuple[float, float] | None
    flops: float | None  # the same ratio by the formula
    target: float


def compared(what: str, timing: Timing, kind: str, reference: str, target: float) -> Row:
    """A row about two kinds of step, by their ratios within a repeat."""
    median, low, high = timing.ratio(kind, reference)
    return Row(what, median, (low, high), timing.flops[kind] / timing.flops[reference], target)


def targets(small: Timing, large: Timing | None, compile_seconds: float | None) -> list[Row]:
    """The rows that were measured."""
    rows = [
        compared("drop step / own plain full step", small, DROP, PLAIN, 0.66),
        compared("ScTD average step / own plain full step", small, AVERAGE, PLAIN, 0.76),
    ]
    if PEER in small.seconds:
        rows.append(compared("own full step / PyTorch full step", small, FULL, PEER, 1.0))
        rows.append(compared("ScTD average step / PyTorch full step", small, AVERAGE, PEER, 0.75))
    if large and PEER in large.seconds:
        rows.append(compared("the same for BERT-base, batch 2", large, AVERAGE, PEER, 0.80))
    if compile_seconds is not None:
        rows.append(Row("seconds to compile all variants of base.py", compile_seconds, None, None, 60.0))
    memory = small.memory[CONSISTENCY] / small.memory[FULL]
    rows.append(Row("peak memory of the consistency step / full step", memory, None, None, 1.35))
    return rows


def print_targets(rows: list[Row]) -> None:
    """The table of targets."""
    print("\n{:<48} {:>7} {:>13} {:>9} {:>7}".format("what", "found", "spread", "by FLOPs", "target"))
    for row in rows:
        spread = f"{row.spread[0]:.2f}-{row.spread[1]:.2f}" if row.spread else ""
        flops = f"{row.flops:.2f}" if row.flops else ""
        met = "met" if row.found <= row.target else "missed"
        print(f"{row.what:<48} {row.found:7.2f} {spread:>13} {flops:>9} {row.target:7.2f} {met}")


def write(folder: Path, timings: list[Timing], rows: list[Row], machine: dict) -> None:
    """`train_step.json` and `train_step.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = [
        {
            "title": timing.title,
            "peer": timing.peer,
            "config": dataclasses.asdict(timing.config),
            "seconds": {kind: values.tolist() for kind, values in timing.seconds.items()},
            "flops": timing.flops,
            "peak_bytes": timing.memory,
            "compile_seconds": timing.compile_seconds,
        }
        for timing in timings
    ]
    content = {"machine": machine, "settings": settings, "targets": [dataclasses.asdict(row) for row in rows]}
    (folder / "train_step.json").write_text(json.dumps(content, indent=2) + "\n")
    figure = Figure(figsize=(5.5 * len(timings), 3.6), layout="tight")
    axes = figure.subplots(1, len(timings), squeeze=False)
    for axis, timing in zip(axes[0], timings, strict=True):
        kinds = list(timing.seconds)
        medians = np.array([np.median(timing.seconds[kind]) for kind in kinds])
        low = medians - [timing.seconds[kind].min() for kind in kinds]
        high = [timing.seconds[kind].max() for kind in kinds] - medians
        colors = ["tab:gray" if kind == PEER else "tab:blue" for kind in kinds]
        axis.barh(kinds, medians, xerr=(low, high), color=colors, capsize=3)
        axis.invert_yaxis()
        axis.set_xlabel("seconds a step (median, lowest and highest)")
        axis.set_title(timing.title, fontsize=9)
    figure.savefig(folder / "train_step.png", dpi=120)
    print(f"\nwritten: {folder / 'train_step.json'}, {folder / 'train_step.png'}")


def main() -> None:
    """Measure and print."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("--config", help="a recipe; default: the settings of the table of targets")
    parser.add_argument("--repeats", type=number(int, 1), default=7)
    parser.add_argument("--peer", choices=("pytorch",), help="measure it too, interleaved")
    parser.add_argument("--peer-python", type=Path, help="a Python with torch and transformers; default: that of here")
    parser.add_argument("--out", type=Path, help="folder for a JSON and a PNG")
    parser.add_argument("--smoke", action="store_true", help="toy sizes, whose figures say nothing")
    parser.add_argument("--arena", help="a recipe of configs/arena: time its methods, and nothing else")
    args = parser.parse_args()
    if args.arena is not None:
        if args.config or args.peer or args.peer_python or args.smoke:
            parser.error("--arena times an arena's methods: without --config, --peer, --peer-python and --smoke")
        arena_step_time.report(arena_step_time.measure(args.arena, args.repeats), args.out)
        return
    peer = args.peer_python or peer_python() if args.peer else None
    if args.peer and not (peer and peer.is_file()):
        parser.error(f"--peer: {peer or 'torch and transformers'}: not there; `make peer` makes one that has them")
    size = toy if args.smoke else (lambda config: config)
    matmul = matmul_flops_per_second()
    device = jax.devices()[0].device_kind
    machine = {"jax": jax.__version__, "device": device, "cpus": os.cpu_count(), "processor": platform.processor()}
    if args.smoke:
        print("--smoke: toy sizes, whatever the titles say; no figure below means anything")
    print(f"jax {jax.__version__} on {device}, {os.cpu_count()} CPUs; a 1024^3 f32 product: {matmul / 1e9:.0f} GFLOP/s")
    if args.config:
        title, config = file_config(args.config)
        timings = [measure(title, size(config), OURS, args.repeats, peer)]
        print_timing(timings[0], matmul)
        rows = [compared(what, timings[0], kind, PEER, most) for what, kind, most in OF_A_RECIPE] if peer else []
    else:
        compile_seconds = seconds_to_compile(size(one_device(base.get_config())))
        title = "12 layers x 256, batch 16, N 128, K 64, P 19, V 8192, dropout 0.1"
        timings = [measure(title, size(small_config()), OURS, args.repeats, peer)]
        print_timing(timings[0], matmul)
        if peer:
            title = "BERT-base, batch 2, N 512, K 256, P 77, V 30522, dropout 0.1"
            repeats = max(args.repeats // 2, 1)
            timings.append(measure(title, size(base_config()), (DROP, CONSISTENCY), repeats, peer))
            print_timing(timings[1], matmul)
        rows = targets(timings[0], timings[1] if peer else None, compile_seconds)
    if rows:
        print_targets(rows)
    if args.out:
        write(args.out, timings, rows, machine)


if __name__ == "__main__":
    restart_with_huge_pages()  # sctd_jax.main does the same
    sys.exit(run_command(main))
