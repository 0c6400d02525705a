"""Recipes: one file, one recipe."""
