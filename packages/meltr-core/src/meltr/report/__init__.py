"""What is read from finished runs: the runs themselves, plots and comparisons. Imports neither torch nor matplotlib."""
