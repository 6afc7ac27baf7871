"""CLIP, SigLIP, SigLIP 2 and VideoMAE of transformers as a backbone of meltr."""
