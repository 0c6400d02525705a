"""Probes of what a pretrained model knows before any fine-tuning; the command is `sctd_jax.probe`."""
