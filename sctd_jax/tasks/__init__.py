"""Tasks of GLUE, SuperGLUE, SQuAD, SWAG, XNLI, sentiment, labelled words and files of the user's, and metrics."""
