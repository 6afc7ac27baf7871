"""`meltr.video.VideoAdapter`: the code that all video backbones share.

| module | content |
| --- | --- |
| `backbone` | `VideoBackbone`: the methods that a backbone writes or overrides |
| `base` | `VideoAdapter`: the run-tier hooks, written once |
| `source` | `Source`: a data set that was found, and the source of its frames |
| `encoder` | `Encoder`: turns an item of a data set into tensors |
| `splits` | `Split`: a split to evaluate, or the files of a prediction |
| `evaluation` | answers, classes, retrieval, captions and sentiment of a split |
| `predicting` | predictions of a trained run for files |
| `limits` | checks of a vocabulary and of lengths against the sizes of a model |
"""
