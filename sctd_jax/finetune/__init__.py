"""Fine-tuning on the tasks of `tasks/`, one run or a sweep."""
