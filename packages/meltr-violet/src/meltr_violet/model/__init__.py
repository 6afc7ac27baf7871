"""The network: Video Swin, text embeddings, the cross-modal transformer and its heads."""
