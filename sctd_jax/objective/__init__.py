"""Masking and losses, as pure functions."""
