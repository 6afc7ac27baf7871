"""Published weights: timm's models, and files of weights."""
