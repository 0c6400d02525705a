"""Recipes of arenas, for python -m sctd_jax.arena."""
