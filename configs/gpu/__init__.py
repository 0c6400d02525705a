"""Recipes for GPUs. None has been run on one."""
