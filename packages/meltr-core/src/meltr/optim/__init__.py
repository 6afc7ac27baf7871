"""Optimisers and schedules of a run."""
