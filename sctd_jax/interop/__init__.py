"""To and from other libraries' checkpoints."""
