"""State, step, loop, checkpoints and what a person sees."""
