"""Everything about video and language: annotations, frames, texts, tasks, and the base class of video backbones."""
