"""Fine-tuning by `transformers`' Trainer and its pipeline for texts, timed for benchmarks/finetune_speed.py.

Started by it as `python benchmarks/peer_trainer.py '{"do": "train", ...}'`, in an environment with torch, transformers
and accelerate (benchmarks/requirements-peer.txt). The last line that it prints is JSON. `train` has `model`, `file`
(JSON lines of `text` and `label`, a number), `batch_size`, `max_length`, `learning_rate`, and `batches`: 'own' for
Trainer's random order, 'grouped' for its order by length, or the .npz of our batches, ids_I, mask_I and labels_I of
step I. It trains two epochs, and answers the seconds of the second one. `predict` has `model`, `file`, `max_length` and
`batch_size`, and answers rows a second of the pipeline, which is warm then.
"""

import json
import sys
import tempfile
import time

import numpy as np
import torch
import transformers


class Clock(transformers.TrainerCallback):
    """Times at the ends of steps."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs):
        """Note the time."""
        self.ends.append(time.perf_counter())


def rows_of(file: str) -> list[dict]:
    """The examples."""
    with open(file, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def train(asked: dict) -> dict:
    """Seconds of the second epoch."""
    transformers.set_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(asked["model"])
    ours = None if asked["batches"] in ("own", "grouped") else np.load(asked["batches"])
    if ours is None:
        rows = rows_of(asked["file"])
        found = tokenizer([row["text"] for row in rows], truncation=True, max_length=asked["max_length"])
        dataset = [
            {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": row["label"], "length": len(ids)}
            for ids, row in zip(found["input_ids"], rows, strict=True)
        ]
        size, collate = asked["batch_size"], transformers.DataCollatorWithPadding(tokenizer)
        labels = len({row["label"] for row in rows})
    else:
        dataset = [
            {"input_ids": ours[f"ids_{i}"], "attention_mask": ours[f"mask_{i}"], "labels": ours[f"labels_{i}"]}
            for i in range(sum(name.startswith("ids_") for name in ours))
        ]
        size, labels = 1, int(max(row["labels"].max() for row in dataset)) + 1

        def collate(members):
            return {name: torch.as_tensor(value) for name, value in members[0].items()}

    network = transformers.AutoModelForSequenceClassification.from_pretrained(asked["model"], num_labels=labels)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder, per_device_train_batch_size=size, num_train_epochs=2, learning_rate=asked["learning_rate"],
            warmup_steps=0.1, weight_decay=0.01, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
            logging_steps=20, dataloader_pin_memory=False, seed=0,
            train_sampling_strategy="group_by_length" if asked["batches"] == "grouped" else "random",
        )  # fmt: skip
        transformers.Trainer(
            network, arguments, train_dataset=dataset, data_collator=collate, callbacks=[clock]
        ).train()
    steps = len(clock.ends) // 2
    return {"epoch_seconds": (clock.ends[-1] - clock.ends[steps - 1]), "steps": steps}


def predict(asked: dict) -> dict:
    """Rows a second of the pipeline."""
    texts = [row["text"] for row in rows_of(asked["file"])]
    pipe = transformers.pipeline("text-classification", model=asked["model"])
    settings = {"truncation": True, "max_length": asked["max_length"], "batch_size": asked["batch_size"]}
    pipe(texts[: 2 * asked["batch_size"]], **settings)
    began = time.perf_counter()
    pipe(texts, **settings)
    return {"rows_per_second": len(texts) / (time.perf_counter() - began)}


if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    answer = {"train": train, "predict": predict}[wanted["do"]](wanted)
    print(json.dumps(answer | {"versions": f"torch {torch.__version__}, transformers {transformers.__version__}"}))
