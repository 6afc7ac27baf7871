"""Reports on runs: reading run folders, plots and comparisons. Imports neither torch nor matplotlib."""
