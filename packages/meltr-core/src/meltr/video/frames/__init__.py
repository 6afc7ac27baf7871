"""Frames of videos and images: decoding, sampling, resizing and padding."""
