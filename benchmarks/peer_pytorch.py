"""PyTorch's BertForMaskedLM, or another family's, on shapes and rows of benchmarks/train_step.py: steps on demand.

Started by train_step.py as `python benchmarks/peer_pytorch.py '{"vocab_size": ...}'`, in an environment that has torch
and transformers (benchmarks/requirements-peer.txt). Prints a line of JSON when it is ready (`versions`, and the seconds
it took to compile), then for every number that it reads the seconds of one of so many steps (forward, backward,
clipping, AdamW) and the bytes it needed. The head runs on the P predicted rows only, as ours does: a peer that also
computed the other rows would be easier to beat.

On a CPU the model is float32 and runs as it is written. On a GPU it is what a user who wants speed takes: bfloat16 by
autocast, TF32 elsewhere, `torch.compile`, and the faster of PyTorch's flash and cuDNN attention; where `torch.compile`
fails it runs without, which `versions` says. No row has padding, so no mask is given, which flash attention would not
take. This path was tried on a CPU, and not on a GPU.
"""

import contextlib
import json
import os
import sys
import time

import numpy as np
import torch
import transformers

KERNELS = ("flash", "cudnn")  # PyTorch's own two attentions without probabilities in memory, by their flags


def use_kernel(name: str | None) -> None:
    """Let PyTorch take one of KERNELS and nothing else, so that none is replaced in silence; None: its own choice."""
    for kernel in (*KERNELS, "mem_efficient", "math"):
        getattr(torch.backends.cuda, f"enable_{kernel}_sdp")(name in (kernel, None))


def fastest_kernel(sizes: dict) -> str | None:
    """The faster of KERNELS forward and backward on the model's shapes; None where this GPU runs neither."""
    seconds, heads = {}, sizes["num_heads"]
    shape = (sizes["batch_size"], heads, sizes["seq_len"], sizes["hidden_size"] // heads)
    qkv = [torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]

    def attend() -> None:
        out = torch.nn.functional.scaled_dot_product_attention(*qkv, dropout_p=sizes["attention_dropout"])
        out.sum().backward()

    for name in KERNELS:
        use_kernel(name)
        with contextlib.suppress(RuntimeError):
            attend()
            torch.cuda.synchronize()
            began = time.perf_counter()
            for _ in range(10):
                attend()
            torch.cuda.synchronize()
            seconds[name] = time.perf_counter() - began
    return min(seconds, key=seconds.__getitem__) if seconds else None


def network(sizes: dict) -> torch.nn.Module:
    """The family's model for masked language modelling, with random weights."""
    model_class, own_fields, _ = FAMILIES[sizes["family"]]
    config = model_class.config_class(
        vocab_size=sizes["vocab_size"], hidden_size=sizes["hidden_size"], num_hidden_layers=sizes["num_layers"],
        num_attention_heads=sizes["num_heads"], intermediate_size=sizes["intermediate_size"], pad_token_id=0,
        **own_fields(sizes),
    )  # fmt: skip
    return model_class(config)


def bert_fields(sizes: dict) -> dict:
    """Fields of a BertConfig beside those that all have."""
    return {
        "max_position_embeddings": sizes["max_positions"],
        "type_vocab_size": sizes["type_vocab_size"],
        "hidden_dropout_prob": sizes["hidden_dropout"],
        "attention_probs_dropout_prob": sizes["attention_dropout"],
    }


def roberta_fields(sizes: dict) -> dict:
    """BERT's; places are counted from pad_token_id + 1 on."""
    return bert_fields(sizes) | {"max_position_embeddings": sizes["max_positions"] + 1}


def modernbert_fields(sizes: dict) -> dict:
    """Fields of a ModernBertConfig beside those that all have."""
    return {
        "max_position_embeddings": sizes["max_positions"],
        "global_attn_every_n_layers": sizes["global_every"],
        "local_attention": sizes["local_attention"],
        "embedding_dropout": sizes["hidden_dropout"],
        "mlp_dropout": sizes["hidden_dropout"],
        "attention_dropout": sizes["attention_dropout"],
    }


def modernbert_head(model: torch.nn.Module, states: torch.Tensor) -> torch.Tensor:
    """Logits; the others have one module for this."""
    return model.decoder(model.head(states))


_ROBERTA = (roberta_fields, lambda model, states: model.lm_head(states))
# `model.family` -> class, fields of its config, logits of states.
FAMILIES = {
    "bert": (transformers.BertForMaskedLM, bert_fields, lambda model, states: model.cls(states)),
    "roberta": (transformers.RobertaForMaskedLM, *_ROBERTA),
    "xlm-roberta": (transformers.XLMRobertaForMaskedLM, *_ROBERTA),
    "camembert": (transformers.CamembertForMaskedLM, *_ROBERTA),
    "modernbert": (transformers.ModernBertForMaskedLM, modernbert_fields, modernbert_head),
}


def main(sizes: dict) -> None:
    """Answer until stdin ends."""
    device, best = sizes["device"], sizes["device"] == "cuda"
    if best and not torch.cuda.is_available():
        sys.exit(f"PyTorch {torch.__version__} finds no GPU")
    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    model, logits_of = network(sizes).train().to(device), FAMILIES[sizes["family"]][-1]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, eps=1e-6, weight_decay=0.01, fused=True)
    with np.load(sizes["batch"]) as batch:
        ids, positions, targets = (torch.from_numpy(batch[name]).long().to(device) for name in
                                   ("input_ids_BN", "positions_BP", "targets_BP"))  # fmt: skip
    rows = torch.arange(len(ids), device=device)[:, None]
    mask = None if best else torch.ones_like(ids)

    def loss_of() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=best):
            states = model.base_model(input_ids=ids, attention_mask=mask)[0][rows, positions]
            return torch.nn.functional.cross_entropy(logits_of(model, states).flatten(0, 1).float(), targets.flatten())

    versions = f"PyTorch {torch.__version__}, transformers {transformers.__version__}"
    began = time.perf_counter()
    if best:
        torch.set_float32_matmul_precision("high")
        use_kernel(kernel := fastest_kernel(sizes))
        compiled, how = torch.compile(loss_of, dynamic=False), "torch.compile"
        try:
            compiled().backward()
            loss_of = compiled
        except Exception as error:  # it wants a C compiler, which a machine may lack
            how = f"NO torch.compile ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        versions += f", {torch.cuda.get_device_name()}, bf16 autocast, {how}, {kernel or 'default'} attention"
    else:
        versions += f", {torch.get_num_threads()} threads"

    def steps(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            loss = loss_of()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        if not np.isfinite(loss.item()):  # waits for the device
            sys.exit("its loss is not finite")
        return (time.perf_counter() - began) / count

    def peak_bytes() -> int | None:
        return torch.cuda.max_memory_allocated() if best else None

    steps(1)  # allocates
    seconds = time.perf_counter() - began if best else None
    print(json.dumps({"versions": versions, "compile_seconds": seconds}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": steps(int(line)), "peak_bytes": peak_bytes()}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
