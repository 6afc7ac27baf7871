"""`meltr.video.VideoAdapter`: all that video backbones have in common.

| module | content |
| --- | --- |
| `backbone` | `VideoBackbone`: the methods that a backbone writes or overrides |
| `base` | `VideoAdapter`: the run-tier hooks, written once |
| `source` | `Source`: a data set as found, and where its frames come from |
| `encoder` | `Encoder`: how an item of a data set becomes tensors |
| `splits` | `Split`: a split to be evaluated, or the files of a prediction |
| `evaluation` | answers, classes, retrieval, captions and sentiment of a split |
| `predicting` | what a trained run says about files |
| `limits` | checks of a vocabulary and of lengths against the sizes of a model |
"""
