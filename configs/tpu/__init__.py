"""Recipes for TPU slices; benchmarks/tpu_recipes.py compiles each for its own."""
