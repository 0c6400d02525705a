"""Compiling for a TPU slice on a machine without one."""

import dataclasses
import importlib.util
import os
import re
from pathlib import Path

import pytest

from configs import base
from sctd_jax.config import from_dict
from sctd_jax.errors import UserError
from sctd_jax.parallel import chips
from sctd_jax.tpu import compile as tpu_compile
from tests import helpers

# Made by .ci/run or `make tpu`.
LIBTPU = Path(os.environ.get("TPU_LIBRARY_PATH", helpers.ROOT / ".venv-tpu" / "libtpu" / "libtpu.so"))
with_libtpu = pytest.mark.skipif(not LIBTPU.is_file(), reason="no libtpu: `make tpu`")


def compile_mode(*args):
    environment = {**helpers.environment(), "TPU_LIBRARY_PATH": str(LIBTPU)}
    return helpers.run_module("sctd_jax.main", "--mode=compile", "--config=tests/small.py", *args, env=environment)


def test_collectives_are_counted_by_kind_and_the_bytes_of_their_results():
    hlo = """
  %all-reduce.1 = (f32[4,2]{1,0:T(8,128)}, bf16[8]{0}) all-reduce(%a, %b), channel_id=1, to_apply=%add
  %all-gather-start.2 = (f32[2]{0}, f32[16]{0}) all-gather-start(%c), channel_id=2
  %all-gather-done.2 = f32[16]{0} all-gather-done(%all-gather-start.2)
  %ar = f32[] all-reduce-start(%d), channel_id=3
  %ag = ((f32[2]{0}, f32[4]{0}), (f32[16]{0}, f32[32]{0})) all-gather-start(%e, %f), channel_id=4
  %cp = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%g), channel_id=5
  %fusion.3 = f32[4]{0} fusion(%all-reduce.1), calls=%all-reduce-scatter
"""
    assert tpu_compile.collectives(hlo) == {
        "all-gather": (2, 64 + 192), "all-reduce": (2, 4 * 8 + 2 * 8 + 4), "collective-permute": (1, 32)
    }  # fmt: skip


def test_without_libtpu_one_line_says_what_to_install(monkeypatch):
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "libtpu" else found(name))
    with pytest.raises(UserError, match=r"compiling for a TPU needs libtpu: pip install 'jax\[tpu\]==0"):
        tpu_compile.topology_devices("v5e:2x4")


def test_a_slice_has_to_be_named():
    result = compile_mode()
    assert result.returncode == 2
    assert "needs --topology, such as --topology=v5e:2x4" in result.stderr


def test_chip_hours_are_flops_over_what_the_chips_do():
    """BERT-base has 85 M parameters in its layers, 6 FLOPs a token each; attention adds a tenth."""
    config = from_dict(base.get_config().to_dict())
    full = dataclasses.replace(config, dropping=dataclasses.replace(config.dropping, method="full"))
    tokens = 250_000 * 256 * 512
    by_hand = 1.1 * 6 * 85e6 * tokens / (0.5 * 197e12 * 3600)
    assert tpu_compile.chip_hours(full, chips.find("TPU v5 lite"), 0.5) == pytest.approx(by_hand, rel=0.1)
    assert tpu_compile.chip_hours(config, chips.find("TPU v5 lite"), 0.5) < 0.8 * by_hand
    assert tpu_compile.chip_hours(full, chips.find("TPU v5 lite"), 0.25) == pytest.approx(2 * by_hand, rel=0.1)


@with_libtpu
def test_all_variants_compile_for_a_slice_and_fit():
    result = compile_mode(
        "--topology=v5e:2x2", "--config.dropping.full_steps_first=1", "--config.data.seq_len=256",
        "--config.model.max_positions=256", "--config.mesh.tensor=2",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "v5e:2x2: 4 x TPU v5 lite, mesh data 2 x fsdp 1 x tensor 2" in result.stdout
    assert "attention splash" in result.stdout
    assert re.findall(r"^\w+$", result.stdout, re.MULTILINE) == ["full", "drop", "consistency"]
    needed = [float(n) for n in re.findall(r"HBM +([\d.]+) of 15.75 GiB a chip: fits", result.stdout)]
    assert len(needed) == 3
    assert all(0 < n < 0.5 for n in needed)
    assert len(re.findall(r"collectives  .*all-reduce [\d.]+ MiB", result.stdout)) == 3
    assert len(re.findall(r"estimate     about [\d.]+ ms", result.stdout)) == 3
    assert "the run: 6 steps are 0 chip-hours at an MFU of 0.4" in result.stdout


@with_libtpu
def test_recomputed_attention_with_dropout_compiles():
    """libtpu 0.0.42's compiler dies of it with the stacks that it gives its threads."""
    result = compile_mode(
        "--topology=v5e:2x2", *helpers.ONE_LAYER,
        "--config.data.seq_len=256", "--config.model.max_positions=256", "--config.model.hidden_size=256",
        "--config.model.attention_dropout=0.1", "--config.model.dtype=bfloat16", "--config.train.batch_size=16",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "recomputed in the backward pass" in result.stdout
    assert "a chip: fits" in result.stdout


@with_libtpu
def test_what_does_not_fit_is_said_and_ends_with_status_1():
    result = compile_mode(
        "--topology=v5e:2x2", *helpers.ONE_LAYER, "--config.train.batch_size=8388608", "--config.model.remat=none"
    )
    assert result.returncode == 1, result.stdout + result.stderr
    assert re.search(r"HBM          does not fit in 15.75 GiB: .*\d", result.stdout)


@with_libtpu
def test_the_largest_batch_is_found_without_generating_code():
    """The buffers of what fits, and the compiler's refusal of the next size."""
    result = compile_mode(
        "--topology=v5e:2x2", "--largest_batch", *helpers.ONE_LAYER,
        "--config.data.seq_len=512", "--config.model.max_positions=512", "--config.model.attention=plain",
        "--config.train.batch_size=32768",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    rows, needed, too_many = re.search(
        r"^  (\d+) rows a chip: ([\d.]+) of 15.75 GiB; (\d+) do not fit$", result.stdout, re.MULTILINE
    ).groups()
    assert int(rows) < int(too_many) <= 1.5 * int(rows)
    assert 15.75 / 1.6 < float(needed) < 15.75


@with_libtpu
@pytest.mark.parametrize("topology", ["v5e:3x7", "nonsense", "v3:2x2"])
def test_an_unknown_slice_is_refused(topology):
    result = compile_mode(f"--topology={topology}")
    assert result.returncode == 2
    assert f"--topology={topology}" in result.stderr
    assert "Traceback" not in result.stderr
