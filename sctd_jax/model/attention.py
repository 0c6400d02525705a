"""Attention in three ways: plain, plain but recomputed in the backward pass, or by a TPU's or a GPU's kernel.

The probabilities [B, H, R, N] of plain attention are what fills a device's memory first. Attention dropout acts on
them, so a kernel that never writes them has none (splash), or draws it in its own way (cuDNN).
Shapes: B batch, R query rows, N context rows, H heads, d width of a head. Queries come scaled by d**-0.5.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as binding
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import Mesh, PartitionSpec

from sctd_jax.config import ModelConfig
from sctd_jax.errors import UserError
from sctd_jax.model.elementwise import dropout
from sctd_jax.model.products import einsum_to_f32

# (query_BRHd, key_BNHd, value_BNHd, mask_BN, dropout rate, dropout key, window=None) -> out_BRHd
Attend = Callable[..., jax.Array]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["query_BR", "key_BN"], meta_fields=["reach"])
@dataclasses.dataclass(frozen=True)
class Window:
    """Tokens that a query of a local layer may see: those at most `reach` places away in the text."""

    reach: int
    query_BR: jax.Array | None  # places in the text, [1, R] if all rows have the same; None: query i is token i of N
    key_BN: jax.Array | None

    def near(self, length: int) -> jax.Array:
        """bool[B or 1, R, N], True where a query may see a token; `length` is N."""
        query_BR, key_BN = self.query_BR, self.key_BN
        if query_BR is None or key_BN is None:
            query_BR = key_BN = jnp.arange(length)[None]
        return jnp.abs(query_BR[:, :, None] - key_BN[:, None, :]) <= self.reach


Kernel = Literal["splash", "cudnn"]
Remat = Literal["none", "attention", "block"]
_KERNELS = {"splash": "a TPU kernel", "cudnn": "a kernel of NVIDIA's"}
_KERNEL_OF: dict[str, Kernel] = {"tpu": "splash", "gpu": "cudnn"}
_LANES = 128  # a TPU's; the kernel wants R and N in multiples of it
_AGAIN = "recomputed in the backward pass"
_OLDEST_CUDNN = (9, 0, 0)  # XLA's own tests of these kernels leave earlier ones out
_OWN_DROPOUT = (
    "draws their dropout by place in each GPU's batch and by the steps since this process began: other bits than plain "
    "attention's, than another mesh's and than a run's that was not interrupted"
)
# Contents of CUDA graphs, without cuDNN's kernels, which XLA has there by default. It counts their executions on the
# host, so that a graph would repeat the dropout of the step at which it was recorded.
_NO_CUDNN_GRAPHS = {"xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL"}


def platform_of(device: jax.Device) -> str:
    """A device's platform for `choose`; 'old gpu' if cuDNN has no attention for it (not NVIDIA's, or before Ampere)."""
    if device.platform != "gpu":
        return device.platform
    return "gpu" if "cuda" in device.client.platform_version and float(device.compute_capability) >= 8 else "old gpu"


def choose(model: ModelConfig, lengths: Iterable[tuple[str, int]], platform: str) -> tuple[ModelConfig, str]:
    """A model with the way in which attention is computed in the place of 'auto', and a text about it for a person.

    Chosen once for all programs of a run: `lengths` are name and number of context rows of each of its attentions.
    `platform` is 'cpu', 'gpu', 'old gpu' or 'tpu', by `platform_of`.
    """
    kernel = model.attention if model.attention in ("splash", "cudnn") else _KERNEL_OF.get(platform)
    obstacle = _obstacle(kernel, model, lengths, platform) if kernel else None
    if model.attention == kernel and obstacle:
        raise UserError(f"config.model.attention is {kernel}, but {obstacle}; auto takes what is possible")
    chosen: Kernel | Literal["plain"] = "plain" if model.attention == "plain" or obstacle or not kernel else kernel
    automatic: Remat = "attention" if platform == "tpu" and chosen == "plain" else "none"
    remat = automatic if model.remat == "auto" else model.remat
    text = f"{chosen}, {_KERNELS[chosen]} that keeps no probabilities" if chosen in _KERNELS else "plain"
    if chosen == "cudnn" and model.attention_dropout:
        text += f", and {_OWN_DROPOUT}"
    if model.global_every > 1:
        span = 3 * (model.local_attention // 2)
        near = f"near the diagonal alone where a row is whole and has more than {span} tokens"
        text += "; in local layers " + {
            "plain": near,
            "splash": f"too where a row is whole, else plain and {_AGAIN}",
            "cudnn": f"plain and {_AGAIN}, {near}",
        }[chosen]  # fmt: skip
    if chosen == "splash":
        text += f"; the last layer's rows plain where they are no multiple of {_LANES}"
    text += {
        "none": "",
        "attention": {
            "plain": f"; its probabilities are {_AGAIN}", "splash": f" and {_AGAIN}",
            "cudnn": "; model.remat=attention has none to recompute",
        }[chosen],
        "block": f"; whole layers are {_AGAIN}",
    }[remat]  # fmt: skip
    if obstacle:
        text += f" (no {kernel}: {obstacle})"
    return dataclasses.replace(model, attention=chosen, remat=remat), text


def _obstacle(kernel: str, model: ModelConfig, lengths: Iterable[tuple[str, int]], platform: str) -> str | None:
    """Why a kernel cannot be used, or None."""
    if _KERNEL_OF.get(platform) != kernel:
        devices = next(p for p, k in _KERNEL_OF.items() if k == kernel)
        return f"it runs on {devices.upper()}s, and the devices are {platform.upper()}s"
    if model.attention_dropout and kernel == "splash":
        return f"it has no dropout, and model.attention_dropout is {model.attention_dropout}"
    if model.attention_dropout and model.attention != "cudnn":
        rate = f"model.attention_dropout is {model.attention_dropout}"
        return (
            f"its dropout is no function of (seed, step, row), and {rate}; model.attention=cudnn takes it all the same"
        )
    width = model.hidden_size // model.num_heads
    if kernel == "cudnn" and model.dtype != "bfloat16":
        return f"it computes in bfloat16, and model.dtype is {model.dtype}"
    if kernel == "cudnn" and (width % 8 or width > 128):
        return f"a head must be a multiple of 8 wide for it, at most 128, found {width}"
    if kernel == "cudnn" and (refusal := _cudnn_refusal(model)):
        return refusal
    for name, length in lengths if kernel == "splash" else ():
        if length % _LANES:
            return f"{name} must be a multiple of {_LANES} for it, found {length}"
    return None


def _cudnn_refusal(model: ModelConfig) -> str | None:
    """Why JAX or its cuDNN would not compute a model's attention, or None."""
    try:
        number = binding.check_cudnn_version()
    except (RuntimeError, OSError):
        return "JAX finds no cuDNN"
    thousand = 10_000 if number >= 90_000 else 1_000  # 9.1.2 is 90102, and 8.9.7 was 8907
    version = (number // thousand, number % thousand // 100, number % 100)
    if version < _OLDEST_CUDNN:
        found, oldest = (".".join(map(str, numbers)) for numbers in (version, _OLDEST_CUDNN))
        return f"cuDNN {oldest} or newer is needed, found {found}"
    # JAX has more conditions, others in each version, and looks at them when a gradient is traced.
    shape = (1, 2, model.num_heads, model.hidden_size // model.num_heads)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16)] * 3
    lengths = jax.ShapeDtypeStruct((1,), jnp.int32)

    def total(*inputs):
        return _cudnn_kernel(*inputs, rate=model.attention_dropout, seed=0).astype(jnp.float32).sum()

    try:
        jax.eval_shape(jax.grad(total, argnums=(0, 1, 2)), *arrays, lengths)
    except (NotImplementedError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        summary = " ".join(str(error).split()).removesuffix(".")
        return f"JAX {jax.__version__} with cuDNN {'.'.join(map(str, version))} refuses it ({summary})"
    return None


def compiler_options(model: ModelConfig) -> dict[str, str]:
    """XLA's options, by name, that a training program needs, its model by `choose`."""
    return _NO_CUDNN_GRAPHS if model.attention == "cudnn" and model.attention_dropout else {}


def attention_options(model: ModelConfig, mesh: Mesh | None, seed: int) -> dict[str, Any]:
    """`attend` and `remat_layers` of a network, its model by `choose`; none, for plain attention, without a mesh.

    `seed` is a run's, for dropout that a kernel draws; other dropout has a key.
    """
    if mesh is None:
        return {}
    assert "auto" not in (model.attention, model.remat), "attention is chosen before programs are made"
    attend = recomputed if model.remat == "attention" else plain
    if model.attention == "splash":
        attend = splash(mesh, otherwise=attend)
    elif model.attention == "cudnn":
        attend = cudnn(seed)
    return {"attend": attend, "remat_layers": model.remat == "block"}


def plain(
    query_BRHd, key_BNHd, value_BNHd, mask_BN, rate: float, dropout_key, window: Window | None = None
) -> jax.Array:
    """Softmax attention with its probabilities in memory; in local layers of long whole rows only the near ones."""
    length = key_BNHd.shape[1]
    if window and window.query_BR is None and length > 3 * window.reach:
        return _by_blocks(query_BRHd, key_BNHd, value_BNHd, mask_BN, rate, dropout_key, window.reach)
    scores_BHRN = einsum_to_f32("brhd,bnhd->bhrn", query_BRHd, key_BNHd)
    seen_BHRN = mask_BN[:, None, None, :]
    if window:
        seen_BHRN = seen_BHRN & window.near(length)[:, None]
    weights_BHRN = _weights(scores_BHRN, seen_BHRN, value_BNHd.dtype, rate, dropout_key)
    return jnp.einsum("bhrn,bnhd->brhd", weights_BHRN, value_BNHd)


def _weights(scores: jax.Array, seen: jax.Array, dtype, rate: float, dropout_key) -> jax.Array:
    """Probabilities over the last axis of scores, 0 where `seen` is False, after dropout."""
    # Finite, so that a row of padding alone is uniform instead of NaN.
    weights = jax.nn.softmax(jnp.where(seen, scores, -1e9)).astype(dtype)
    return dropout(dropout_key, weights, rate) if rate else weights


def _by_blocks(query_BNHd, key_BNHd, value_BNHd, mask_BN, rate: float, dropout_key, reach: int) -> jax.Array:
    """Local attention of blocks of `reach` queries over their own and the two neighbouring blocks of keys."""
    rows, length, heads, width = query_BNHd.shape
    blocks = -(-length // reach)

    def filled(x_BN):  # the last block with padding, which nobody sees
        return jnp.pad(x_BN, ((0, 0), (0, blocks * reach - length), *[(0, 0)] * (x_BN.ndim - 2)))

    def around(x_BN):  # [B, N, ...] -> [B, blocks, 3 reach, ...]
        x = filled(x_BN).reshape(rows, blocks, reach, *x_BN.shape[2:])
        x = jnp.pad(x, ((0, 0), (1, 1), *[(0, 0)] * (x.ndim - 2)))
        return jnp.concatenate([x[:, :-2], x[:, 1:-1], x[:, 2:]], axis=2)

    query_BbrHd = filled(query_BNHd).reshape(rows, blocks, reach, heads, width)
    key_BbkHd, value_BbkHd, mask_Bbk = around(key_BNHd), around(value_BNHd), around(mask_BN)
    near_rk = Window(reach, jnp.arange(reach)[None] + reach, jnp.arange(3 * reach)[None]).near(3 * reach)[0]
    scores_BbHrk = einsum_to_f32("bnrhd,bnkhd->bnhrk", query_BbrHd, key_BbkHd)
    seen_BbHrk = mask_Bbk[:, :, None, None] & near_rk[None, None, None]
    weights_BbHrk = _weights(scores_BbHrk, seen_BbHrk, value_BNHd.dtype, rate, dropout_key)
    out_BbrHd = jnp.einsum("bnhrk,bnkhd->bnrhd", weights_BbHrk, value_BbkHd)
    return out_BbrHd.reshape(rows, blocks * reach, heads, width)[:, :length]


# The projections are outside: only scores and probabilities are computed a second time.
recomputed: Attend = jax.checkpoint(plain, static_argnums=4)


def cudnn(seed: int) -> Attend:
    """Attention by cuDNN, whose dropout takes a constant of the program where others take the step's key.

    Each attention of a program, each layer in each pass, has its own. XLA moves it on by the number of executions.
    Rows at the same place of two GPUs' batches have the same dropout.
    """
    seeds = itertools.count(seed % 2**31 << 16)

    def attend(query_BRHd, key_BNHd, value_BNHd, mask_BN, rate, dropout_key, window=None):
        if window:  # the kernel has windows of earlier tokens alone
            return recomputed(query_BRHd, key_BNHd, value_BNHd, mask_BN, rate, dropout_key, window)
        kernel = functools.partial(_cudnn_kernel, rate=rate, seed=next(seeds))
        return by_lengths(query_BRHd, key_BNHd, value_BNHd, mask_BN, kernel)

    return attend


def by_lengths(
    query_BRHd, key_BNHd, value_BNHd, mask_BN, kernel: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
) -> jax.Array:
    """Attention by a kernel (query, key, value, lengths_B) that takes numbers of tokens for a mask.

    Padding is at the end of a row, also among kept tokens, which are in text order. The kernel is given even R and N
    (the last layer's P + 1 rows may be odd), and at least one token in each row. What it gives padding for a gradient
    is left out: cuDNN leaves it unwritten, and not every version of XLA sets it to 0 before.
    """
    # cuDNN skips a row of length 0, says its documentation: its output would be what stood in memory.
    lengths_B = jnp.maximum(mask_BN.sum(axis=1, dtype=jnp.int32), 1)
    key_BNHd, value_BNHd = (jnp.where(mask_BN[:, :, None, None], x, jnp.zeros_like(x)) for x in (key_BNHd, value_BNHd))

    def even(x):
        return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))

    return kernel(even(query_BRHd), even(key_BNHd), even(value_BNHd), lengths_B)[:, : query_BRHd.shape[1]]


def _cudnn_kernel(query_BRHd, key_BNHd, value_BNHd, lengths_B, *, rate: float, seed: int) -> jax.Array:
    if not rate:
        return jax.nn.dot_product_attention(
            query_BRHd, key_BNHd, value_BNHd, scale=1.0, key_value_seq_lengths=lengths_B, implementation="cudnn"
        )
    return binding.dot_product_attention(
        query_BRHd, key_BNHd, value_BNHd, q_seqlen=jnp.full_like(lengths_B, query_BRHd.shape[1]), kv_seqlen=lengths_B,
        scale=1.0, mask_type=binding.MaskType.PADDING, dropout_rate=rate, seed=seed,
    )  # fmt: skip


def splash(mesh: Mesh, otherwise: Attend) -> Attend:
    """Splash attention on a mesh, batch and heads sharded; numbers of rows that the kernel cannot take go elsewhere.

    Those are the last layer's, where only the rows of the loss are computed: a sixth of the others' memory.
    On a CPU mesh the kernel is interpreted, for tests.
    """
    rows, heads = ("data", "fsdp"), "tensor"
    interpret = mesh.devices.flat[0].platform == "cpu"

    def on_device(query_BRHd, key_BNHd, value_BNHd, mask_BN, *, reach: int | None):
        kernel = _splash_kernel(query_BRHd.shape[2], query_BRHd.shape[1], key_BNHd.shape[1], reach, interpret)

        def one_row(query_RHd, key_NHd, value_NHd, mask_N):
            ids = splash_attention.SegmentIds(jnp.ones(query_RHd.shape[0], jnp.int32), mask_N.astype(jnp.int32))
            out_HRd = kernel(*(x.swapaxes(0, 1) for x in (query_RHd, key_NHd, value_NHd)), segment_ids=ids)
            return out_HRd.swapaxes(0, 1)

        return jax.vmap(one_row)(query_BRHd, key_BNHd, value_BNHd, mask_BN)

    spec = PartitionSpec(rows, None, heads, None)

    def attend(query_BRHd, key_BNHd, value_BNHd, mask_BN, rate, dropout_key, window=None):
        if window and window.query_BR is not None:  # kept tokens: the kernel knows places in its arrays alone
            return recomputed(query_BRHd, key_BNHd, value_BNHd, mask_BN, rate, dropout_key, window)
        if query_BRHd.shape[1] % _LANES or key_BNHd.shape[1] % _LANES:
            return otherwise(query_BRHd, key_BNHd, value_BNHd, mask_BN, rate, dropout_key, window)
        sharded = jax.shard_map(
            functools.partial(on_device, reach=window and window.reach), mesh=mesh,
            in_specs=(spec, spec, spec, PartitionSpec(rows, None)), out_specs=spec, check_vma=False,
        )  # fmt: skip
        return sharded(query_BRHd, key_BNHd, value_BNHd, mask_BN)

    return attend


def _splash_kernel(heads: int, rows: int, context: int, reach: int | None, interpret: bool):
    block_q, block_kv = (max(size for size in (128, 256, 512) if n % size == 0) for n in (rows, context))
    sizes = splash_attention.BlockSizes(
        block_q=min(block_q, 256), block_kv=block_kv, block_q_dkv=min(block_q, 256), block_kv_dkv=block_kv,
        use_fused_bwd_kernel=True,
    )  # fmt: skip
    shape = (rows, context)
    one = splash_attention.FullMask(shape) if reach is None else splash_attention.LocalMask(shape, (reach, reach), 0)
    mask = splash_attention.MultiHeadMask([one] * heads)
    return splash_attention.make_splash_mha(
        mask=mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
    )
