"""Damaged, hostile and absurd inputs: each gets one line. A table for each command, `case.py` says what a row is."""
