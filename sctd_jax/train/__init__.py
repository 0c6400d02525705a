"""The engine: state, loop, checkpoints and metrics; knows no objective, no dropping and no task."""
