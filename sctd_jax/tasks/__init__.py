"""The tasks of GLUE, SuperGLUE, SQuAD, SWAG and files of the user's: examples, metrics and submissions."""
