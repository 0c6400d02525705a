"""Fine-tuning and evaluation on the tasks of GLUE, SuperGLUE, SQuAD, SWAG and on files of the user's."""
