"""Recipes for TPU slices, each compiled for its own; docs/tpu.md has the table."""
