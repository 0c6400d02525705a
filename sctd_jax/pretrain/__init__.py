"""Pretraining: rows, steps with token dropping and semantic consistency, evaluation, what a person sees."""
