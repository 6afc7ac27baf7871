"""The toy backbone with a `predict`: it takes a picture's mean red and green for a point, and asks which ring it is on.

Imported as a plugin file, with toy_backbone.py beside it.
"""

import torch

import meltr
from meltr.video.frames.media import decode
from meltr.video.frames.media_files import kind
from toy_backbone import Toy, register_datasets  # noqa: F401


@meltr.hookimpl
def register_backbones():
    task = meltr.BackboneTask(task="classification", losses=("ce", "denoise", "norm"), datasets=("rings",))
    return [meltr.BackboneInfo(name="asking", summary="A toy.", adapter=f"{__name__}:Asking", tasks=(task,))]


def point(path):
    """Return (2,): mean red and green of the first frame, 0..255 mapped to -2..2."""
    picture = decode(path, lambda total: (0,)).frames[0]
    return torch.from_numpy(picture[..., :2]).double().mean((0, 1)).float() / 63.75 - 2


class Asking(Toy):
    @meltr.hookimpl
    def build_data(self, context):
        data = super().build_data(context)
        return meltr.Data(data.train, data.validation, data.test, data.held_out, meta={"rings": ("inner", "outer")})

    @meltr.hookimpl
    def predict(self, model, request, data, context):
        if request.question is not None:
            raise meltr.UserError("The toy answers no questions.", "Leave --question out.")
        points = torch.stack([point(path) for path in request.media])
        found = model.classify(model(points.to(context.device))).float().softmax(1)
        if request.search is not None:
            ring = data.meta["rings"].index(request.search)
            order = found[:, ring].argsort(descending=True)[: request.top].tolist()
            rows = [{kind(request.media[i]): request.media[i], "score": float(found[i, ring])} for i in order]
            return meltr.Prediction(tuple(rows), f"files on the {request.search} ring")
        rows = [
            {kind(path): path, "ring": data.meta["rings"][i], "probability": float(each[i])}
            for path, each in zip(request.media, found, strict=True)
            for i in each.argsort(descending=True)[: request.top].tolist()
        ]
        return meltr.Prediction(tuple(rows), "rings")
