"""One command for a machine with an accelerator: `python -m benchmarks.accelerator` (docs/gpu.md)."""
