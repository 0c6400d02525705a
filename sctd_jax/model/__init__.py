"""The encoder, and token dropping as pure functions."""
