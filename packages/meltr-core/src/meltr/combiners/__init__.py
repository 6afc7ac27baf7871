"""Rules that turn the task losses into the one loss that is descended; one rule a file."""
