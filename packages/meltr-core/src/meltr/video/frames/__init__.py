"""Frames of videos and images: decoding, sampling, pictures."""
