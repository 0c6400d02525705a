"""Text -> tokenizer -> packed rows -> batches."""
