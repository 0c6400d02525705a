"""PyTorch's BertForMaskedLM on the shapes of benchmarks/train_step.py, one training step per line read from stdin.

Runs in the environment of benchmarks/requirements-peer.txt, started by train_step.py as
`python benchmarks/peer_pytorch.py '{"vocab_size": ...}'`. Prints its versions when it is ready, then the seconds of one
step (forward, backward, AdamW) for every line that it reads. The head runs on the P predicted rows only, as ours does:
a peer that also computed the other rows would be easier to beat.
"""

import json
import os
import sys
import time

import torch
import transformers


def main(sizes: dict) -> None:
    """Answer until stdin ends."""
    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["hidden_size"],
        num_hidden_layers=sizes["num_layers"],
        num_attention_heads=sizes["num_heads"],
        intermediate_size=sizes["intermediate_size"],
        max_position_embeddings=sizes["max_positions"],
        hidden_dropout_prob=sizes["hidden_dropout"],
        attention_probs_dropout_prob=sizes["attention_dropout"],
    )
    model = transformers.BertForMaskedLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, eps=1e-6, weight_decay=0.01, fused=True)
    batch, length, predicted = sizes["batch_size"], sizes["seq_len"], sizes["num_predicted"]
    ids = torch.randint(5, sizes["vocab_size"], (batch, length))
    mask = torch.ones_like(ids)
    rows = torch.arange(batch)[:, None]
    positions = torch.stack([torch.randperm(length - 2)[:predicted].sort().values + 1 for _ in range(batch)])
    targets = ids[rows, positions]

    def step() -> float:
        started = time.perf_counter()
        states = model.bert(input_ids=ids, attention_mask=mask)[0]
        logits = model.cls(states[rows, positions])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        return time.perf_counter() - started

    step()  # allocates
    threads = torch.get_num_threads()
    print(f"PyTorch {torch.__version__}, transformers {transformers.__version__}, {threads} threads", flush=True)
    for _ in sys.stdin:
        print(step(), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
