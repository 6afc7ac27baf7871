"""UniVL (Luo et al. 2020) for meltr: encoders of text and video, a cross encoder, a decoder, and their losses."""
