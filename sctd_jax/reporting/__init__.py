"""The page that shows runs side by side; the command is `sctd_jax.report`."""
