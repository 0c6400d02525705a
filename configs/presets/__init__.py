"""Recipes of the public implementations (SPEC 6)."""
