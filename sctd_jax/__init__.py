"""sctd_jax: BERT pretraining with token dropping and ScTD in JAX/Flax."""

__version__ = "0.1.0"
