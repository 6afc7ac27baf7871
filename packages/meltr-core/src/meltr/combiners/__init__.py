"""Rules that combine the task losses into the loss that training minimises; one rule per file."""
