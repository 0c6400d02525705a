"""Recipes of the public implementations (docs/method.md 8)."""
