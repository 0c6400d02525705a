"""BERT-base by ScTD, the paper's recipe.

    python -m sctd_jax.main --config=configs/base.py --config.data.input='corpus/**/*.txt'

Every field of the configuration is here with its default; what each one means is told by `--help`.
Source: Zhong et al., ACL 2023, and its code (docs/method.md 8); learning rate and schedule of Hou et al., ACL 2022.
Hardware: made for a TPU slice or a GPU node. Its full-length result has not been measured by us.
Without `data.input` it trains on the embedded trial corpus.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The recipe."""
    return ConfigDict(
        {
            "model": {
                "vocab_size": 30522,
                "num_layers": 12,
                "hidden_size": 768,
                "num_heads": 12,
                "intermediate_size": 3072,
                "max_positions": 512,
                "type_vocab_size": 2,
                "hidden_dropout": 0.1,
                "attention_dropout": 0.1,
                "activation": "gelu",
                "layer_norm_eps": 1e-12,
                "initializer_range": 0.02,
                "dtype": "bfloat16",
                "attention": "auto",
                "remat": "auto",
            },
            "dropping": {
                "method": "sctd",
                "selector": "importance",
                "drop_rate": 0.5,
                "keep_schedule": "",
                "random_share": 0.5,
                "first_layer": -1,
                "last_layer": -1,
                "importance_init": 10.0,
                "importance_beta": 0.95,
                "sc_interval": 10,
                "sc_weight": 0.05,
                "sc_stop_gradient": False,
                "sc_pool": "cls",
                "sc_share_prefix": True,
                "full_steps_first": 0,
                "full_steps_last": 0,
            },
            "masking": {"rate": 0.15, "mask_share": 0.8, "random_share": 0.1, "whole_word": False},
            "data": {
                "input": "",
                "text_field": "text",
                "documents": "file",
                "rows": "",
                "prepared_dir": "data/prepared",
                "seq_len": 512,
                "tokenizer": "",
                # The 12 MB of the trial corpus support no unigram vocabulary of 30,522 pieces.
                "tokenizer_type": "bpe",
                "heldout_share": 0.01,
                "seed": 0,
                "keep_zwnj": True,
                "allow_unknown": False,
            },
            "optimizer": {
                "name": "adamw",
                "learning_rate": 1e-4,
                "warmup_steps": 10_000,
                "schedule": "linear",
                "beta1": 0.9,
                "beta2": 0.999,
                "eps": 1e-6,
                "eps_place": "after_correction",
                "weight_decay": 0.01,
                "decay": "kernels",
                "clip_norm": 1.0,
                "mu_dtype": "float32",
            },
            "train": {
                "seed": 0,
                "init": "",
                "steps": 250_000,
                "batch_size": 256,
                "accumulation": 1,
                "consistency_accumulation": 0,
                "eval_every": 2_500,
                "eval_rows": 256,
                "checkpoint_every": 2_500,
                "keep_checkpoints": 2,
                "log_every": 50,
                "max_bad_steps": 20,
            },
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
        }
    )
