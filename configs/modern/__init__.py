"""Recipes of ModernBERT's family."""
