"""Features of videos: the files, how they are made, and the networks that make them."""
