"""Measurements; none is part of the package."""
