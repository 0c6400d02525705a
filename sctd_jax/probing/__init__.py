"""Probes of a pretrained model before any fine-tuning; the command is `sctd_jax.probe`."""
