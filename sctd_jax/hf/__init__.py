"""File formats of Hugging Face `transformers` and `tokenizers`; nothing here knows a workdir."""
