"""Numbers of the device against those of the CPU backend in the same process, and against themselves.

Three steps of each method, and of a ModernBERT, from one state, with dropout: f32 at the highest matmul precision has
to be the CPU's to 1e-4; bf16 is shown beside what bf16 changes on a CPU. Gradients are read off Adam's first moments.
On a CPU both sides are the CPU's, one compiled without XLA's algebraic simplifier, and items that would repeat others
are left out.
"""

import dataclasses
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator import comparing, golden
from benchmarks.accelerator.comparing import SPECIAL, STEPS, Trajectory
from benchmarks.accelerator.part import Bench
from configs import base
from sctd_jax.config import Config, from_dict
from sctd_jax.model.elementwise import keep_mask
from sctd_jax.objective.masking import row_keys
from sctd_jax.pretrain import step

MODERN = "modernbert"
# Method, with a family where it is not BERT; most important first.
CASES = ("full", "sctd", f"sctd {MODERN}", "drop", "random_ltd", "late_mask", "random", "full_every")
SMOKE_CASES = ("sctd", f"late_mask {MODERN}")  # a program takes seconds to compile
TOLERANCE = 1e-4
HOW = (
    "Losses: relative. Gradients: of the first step, clipped (Adam's first moments / (1 - beta1)), and the first "
    "moments after three steps. Of a leaf the largest difference counts, relative to the leaf's largest number; of "
    "the keys' biases, whose true gradient is 0, relative to the largest number of all leaves. Parameters are shown, "
    "not judged: Adam divides rounding by rounding where a gradient is 0."
)
# Another way to compile, for --smoke, which compares a CPU with itself: other roundings in hardly more time.
_UNLIKE = {"xla_disable_hlo_passes": "algsimp"}
_DETERMINISTIC = {"xla_gpu_deterministic_ops": True}


def run(bench: Bench) -> Iterator[str]:
    """Lines of the part."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the tests' process wants the device too
    if jax.config.jax_platforms and "cpu" not in jax.config.jax_platforms:
        jax.config.update("jax_platforms", f"{jax.config.jax_platforms},cpu")
    device, cpu = jax.devices()[0], jax.devices("cpu")[0]
    tests = golden.start(bench.smoke)
    report: dict[str, Any] = {"device": device.device_kind, "steps": STEPS, "tolerance": TOLERANCE, "how": HOW}
    part = _Part(bench, device, cpu, report)
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                yield from part.bits()
                exact = yield from part.exact(pool)
                yield part.recorded(tests)
                yield from part.rounded(pool, exact)
                yield from part.deterministic()
                yield from part.wide(pool)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
    finally:
        if tests:
            tests.process.kill()
            tests.process.wait()


def config_of(case: str, dtype: str, smoke: bool, wide: bool = False) -> Config:
    """A small run of one of CASES, whose three steps run each of its variants; `wide`: BERT-base's layers."""
    method, _, family = case.partition(" ")
    values = base.get_config()
    if smoke:
        sizes = {"vocab_size": 512, "num_layers": 4, "hidden_size": 32, "num_heads": 4, "intermediate_size": 64}
        length, batch = 32, 8
    elif wide:
        sizes, length, batch = {"vocab_size": 8192}, 128, 8
    else:
        sizes = {"vocab_size": 4096, "num_layers": 4, "hidden_size": 256, "num_heads": 4, "intermediate_size": 1024}
        length, batch = 128, 32
    # Attention dropout stays 0: with it the kernel of a GPU, whose bits are its own, would not be compared.
    values.model.update(max_positions=length, dtype=dtype, attention_dropout=0.0, **sizes)
    if family == MODERN:
        # Windows narrow enough that whole rows are computed in blocks, and that kept tokens lose neighbours.
        values.model.update(
            family=family, type_vocab_size=1, layer_norm_eps=1e-5, global_every=3, local_attention=length // 4
        )
    values.dropping.update(method=method, sc_interval=2)
    values.data.seq_len = length
    values.optimizer.update(learning_rate=1e-3, warmup_steps=2)
    values.train.update(batch_size=batch, steps=100)
    return from_dict(values.to_dict())


@dataclasses.dataclass
class _Part:
    """Settings that the items share."""

    bench: Bench
    device: jax.Device
    cpu: jax.Device
    report: dict[str, Any]

    def save(self) -> None:
        self.bench.save("numbers", self.report)

    def judge(self, item: str, right: bool) -> None:
        """Name an item among what is wrong, unless it is right."""
        self.report.setdefault("wrong", []).extend([] if right else [item])

    def left_out(self, item: str, seconds: float) -> bool:
        """Whether less than so many seconds are left, which is written down."""
        if self.bench.left() >= (5 if self.bench.smoke else seconds):
            return False
        self.report.setdefault("left out for time", []).append(item)
        self.save()
        return True

    def compiled(self, pool: ThreadPoolExecutor, config: Config, precision: str | None = None) -> tuple[Future, Future]:
        """Programs of the device and of the CPU, compiled in the background.

        On a CPU those to be compared, which have a precision, are compiled in two ways, others once.
        """
        ours = pool.submit(comparing.compile_steps, config, self.device, precision)
        if self.device == self.cpu and precision is None:
            return ours, ours
        unlike = _UNLIKE if self.device == self.cpu else None
        return ours, pool.submit(comparing.compile_steps, config, self.cpu, precision, unlike)

    def bits(self) -> Iterator[str]:
        """Masks, dropout and draws, which have to be the same bits, and the first parameters."""
        config = config_of("drop", "float32", self.bench.smoke)
        rows = comparing.random_rows(config, 1)[0]
        found = [_draws(config, rows, device) for device in (self.device, self.cpu)]
        same = comparing.same_bits(*found)
        parameters = (
            comparing.arrays(comparing.first_state(config, device).params) for device in (self.device, self.cpu)
        )
        initial, leaf = comparing.largest(*parameters)
        self.report["bits"] = {"same": same, "first parameters": {"deviation": initial, "leaf": leaf}}
        self.judge("bits", all(same.values()))
        self.save()
        odd = [name for name, equal in same.items() if not equal]
        verdict = f"NOT the CPU's: {', '.join(odd)}" if odd else "the CPU's bits"
        yield f"masks, dropout, draws: {verdict}; first parameters off by {initial:.1e}"

    def exact(self, pool: ThreadPoolExecutor):
        """f32 at the highest precision, case by case. Returns the trajectories (device, CPU) by case."""
        cases = SMOKE_CASES if self.bench.smoke else CASES
        configs = {case: config_of(case, "float32", self.bench.smoke) for case in cases}
        programs = {case: self.compiled(pool, config, "highest") for case, config in configs.items()}
        found = {}
        for case, config in configs.items():
            if self.left_out(f"f32 {case}", 10):
                yield f"f32 {case:<20} left out for time"
                continue
            first, rows = comparing.first_state(config, self.cpu), comparing.random_rows(config, STEPS)
            ours, theirs = (comparing.train(of_side.result(), first, rows) for of_side in programs[case])
            found[case] = ours, theirs
            values = compare(ours, theirs)
            again = comparing.train(programs[case][0].result(), first, rows)
            values["differs from run to run"] = moving = comparing.differing(again.state, ours.state)
            self.report.setdefault("f32", {})[case] = values
            self.judge(f"f32 {case}", values["equal"])
            self.save()
            yield f"f32 {case:<20} against the CPU: {text(values)}; {moving_text(moving)}"
        return found

    def recorded(self, tests: golden.Tests | None) -> str:
        """The tests of the recorded numbers."""
        found: dict[str, Any] = {"left out": "pytest is not installed"}
        if tests:
            try:
                found = golden.read(tests, max(self.bench.left(), 1))
                self.judge("golden parity", found["status"] == 0)
            except subprocess.TimeoutExpired:
                found = {"left out": "its tests had not ended in time"}
        self.report["golden"] = found
        self.save()
        return f"golden parity: {found['left out']}" if "left out" in found else golden.line(found)

    def rounded(self, pool: ThreadPoolExecutor, exact: dict[str, tuple[Trajectory, Trajectory]]) -> Iterator[str]:
        """bf16 against f32, beside the same on the CPU, and f32 as JAX multiplies it by default."""
        kept = {case: config_of(case, "bfloat16", self.bench.smoke) for case in exact}
        plain = config_of("full", "float32", self.bench.smoke)
        programs = {case: self.compiled(pool, config) for case, config in kept.items()}
        default = pool.submit(comparing.compile_steps, plain, self.device) if "full" in exact else None
        for case, config in kept.items():
            if self.left_out(f"bf16 {case}", 10):
                yield f"bf16 {case:<19} left out for time"
                continue
            first, rows = comparing.first_state(config, self.cpu), comparing.random_rows(config, STEPS)
            ours, theirs = (comparing.train(of_side.result(), first, rows) for of_side in programs[case])
            again = comparing.train(programs[case][0].result(), first, rows)
            here, expected = (rounding(*pair) for pair in zip((ours, theirs), exact[case], strict=True))
            moving = comparing.differing(again.state, ours.state)
            values = {"device": here, "expected from the CPU": expected, "differs from run to run": moving}
            self.report.setdefault("bf16 against f32", {})[case] = values
            self.save()
            spreads = f"{rounding_text(here)}; on a CPU {rounding_text(expected)}"
            yield f"bf16 {case:<19} against f32: {spreads}; {moving_text(moving)}"
        if default and not self.left_out("f32 at JAX's default precision", 10):
            first, rows = comparing.first_state(plain, self.cpu), comparing.random_rows(plain, STEPS)
            values = rounding(comparing.train(default.result(), first, rows), exact["full"][0])
            self.report["f32 at JAX's default precision against the highest"] = values
            self.save()
            yield f"f32 at JAX's default matmul precision against the highest: {rounding_text(values)}"

    def deterministic(self) -> Iterator[str]:
        """Whether XLA's option makes the steps of ScTD the same bits from run to run."""
        if self.device == self.cpu or self.left_out("xla_gpu_deterministic_ops", 40):
            return
        config = config_of("sctd", "bfloat16", self.bench.smoke)
        programs = comparing.compile_steps(config, self.device, None, _DETERMINISTIC)
        first, rows = comparing.first_state(config, self.cpu), comparing.random_rows(config, STEPS)
        one, two = (comparing.train(programs, first, rows) for _ in range(2))
        moving = comparing.differing(two.state, one.state)
        self.report["with xla_gpu_deterministic_ops, bf16 sctd differs from run to run"] = moving
        self.save()
        yield f"with xla_gpu_deterministic_ops, bf16 sctd: {moving_text(moving)}"

    def wide(self, pool: ThreadPoolExecutor) -> Iterator[str]:
        """f32 again, at BERT-base's depth and width."""
        if self.device == self.cpu:
            return
        if self.left_out("f32 sctd of 12 x 768", 60):
            yield "f32 sctd of 12 x 768: left out for time"
            return
        config = config_of("sctd", "float32", self.bench.smoke, wide=True)
        programs = [of_side.result() for of_side in self.compiled(pool, config, "highest")]
        first, rows = comparing.first_state(config, self.cpu), comparing.random_rows(config, STEPS)
        values = compare(*(comparing.train(of_side, first, rows) for of_side in programs))
        self.report["f32 sctd of 12 x 768"] = values
        self.judge("f32 sctd of 12 x 768", values["equal"])
        self.save()
        yield f"f32 sctd of {config.model.num_layers} x {config.model.hidden_size}: {text(values)}"


def _draws(config: Config, rows: np.ndarray, device: jax.Device) -> dict[str, np.ndarray]:
    """Everything random of a step but the first parameters, by name."""

    @jax.jit
    def draw(tokens_BN):
        key = jax.random.fold_in(jax.random.key(config.train.seed), 1)
        batch = step.mask_batch(config, SPECIAL, key, tokens_BN)
        words = np.arange(config.model.vocab_size) % 3 > 0
        whole = step.mask_batch(config, SPECIAL, key, tokens_BN, words)
        keys_B = row_keys(key, jnp.arange(len(rows)))
        state_BND = jnp.zeros((*tokens_BN.shape, 1))
        importance_V = jnp.sin(jnp.arange(config.model.vocab_size, dtype=jnp.float32))
        random = dataclasses.replace(config, dropping=dataclasses.replace(config.dropping, method="random"))
        return {
            "masked ids": batch.input_ids_BN,
            "predicted positions": batch.positions_BP,
            "their weights": batch.weights_BP,
            "masked ids of whole words": whole.input_ids_BN,
            "dropout": keep_mask(key, (len(rows), config.data.seq_len, 64), 0.1),
            "kept at random": step.select(random, importance_V, batch, keys_B, state_BND),
            "kept by importance": step.select(config, importance_V, batch, keys_B, state_BND),
        }

    with jax.default_device(device):
        return jax.device_get(draw(jax.device_put(rows, device)))


def compare(ours: Trajectory, theirs: Trajectory) -> dict[str, Any]:
    """Deviations of two runs that compute the same; `equal`: to the tolerance."""
    values: dict[str, Any] = {
        "losses": ours.losses.tolist(),
        "losses of the CPU": theirs.losses.tolist(),
        "loss": comparing.relative(ours.losses, theirs.losses),
    }
    for name in ("gradients", "moments", "importance", "parameters"):
        deviation, leaf = comparing.largest(getattr(ours, name), getattr(theirs, name))
        values[name] = {"deviation": deviation, "leaf": leaf}
    judged = [values["loss"], *(values[name]["deviation"] for name in ("gradients", "moments", "importance"))]
    values["equal"] = bool(np.max(judged) <= TOLERANCE)  # not so if one is NaN
    return values


def text(values: dict[str, Any]) -> str:
    """A comparison in a line."""
    worse = comparing.worst((values[name]["deviation"], values[name]["leaf"]) for name in ("gradients", "moments"))
    verdict = "equal" if values["equal"] else "NOT EQUAL"
    return (
        f"loss {values['loss']:.0e}, gradients {worse[0]:.0e} ({worse[1]}), importance "
        f"{values['importance']['deviation']:.0e}: {verdict} to {TOLERANCE:.0e}"
    )


def moving_text(moving: dict[str, float]) -> str:
    """Leaves that differ from run to run, in a line."""
    if not moving:
        return "the same bits from run to run"
    names = sorted(moving, key=moving.__getitem__, reverse=True)
    return f"{len(moving)} leaves differ from run to run, most {names[0]} by {moving[names[0]]:.0e}"


def rounding(ours: Trajectory, theirs: Trajectory) -> dict[str, Any]:
    """Spread of a run in lower precision around one in f32."""
    middle, most, leaf = comparing.spread(ours.gradients, theirs.gradients)
    return {
        "loss": comparing.relative(ours.losses, theirs.losses),
        "gradients": {"median": middle, "largest": most, "leaf": leaf},
        "importance": comparing.spread(ours.importance, theirs.importance)[1],
    }


def rounding_text(values: dict[str, Any]) -> str:
    """The spread in a line."""
    gradients = values["gradients"]
    return f"loss {values['loss']:.0e}, gradients {gradients['median']:.0e} to {gradients['largest']:.0e}"
