"""Features of videos: their files, their extraction, and the networks that compute them."""
