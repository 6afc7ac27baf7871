r"""The loss transformer of MELTR (Ko et al., CVPR 2023, section 4.1, eqs. 4 and 5).

Equation 6, the regulariser, belongs to the primary objective: `meltr.hypergradients.objective.primary_objective`.

Each loss value becomes a token: the sum of a scale embedding (an MLP of the value) and a task embedding (a learned
vector). One post-norm transformer encoder layer lets the tokens attend to each other. Their mean is projected to a
scalar:

    token_t = W2 relu(W1 l_t + b1) + b2 + E_t            (eqs. 4 and 5)
    m(l)    = w . mean_t Encoder(token)_t                [+ sum_t l_t with ``start="sum"``]

The parameters have the names and shapes of the released code (`task_embedding`, `loss_fc1`, `loss_fc2`, `encoder`,
`fc1`), so that its state dicts load with `load_state_dict`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from meltr.combiners.base import Combiner, as_names, sensitivities

Embedding = Literal["scale+task", "scale", "task"]
Start = Literal["sum", "fit", "random"]
Readout = Literal["mean", "shares"]


class LossTransformer(Combiner):
    """A small transformer over the loss values, trained by the outer loop.

    Args:
        losses: Names of the losses, primary first, or how many there are (T+1).
        width: Embedding width d.
        heads: Attention heads; must divide `width`.
        feedforward: Hidden units of the encoder's feed-forward part.
        scale_hidden: Hidden units of the scale embedding's MLP.
        layers: Encoder layers (1 in the paper; more are stored as ``encoder.0``, ``encoder.1``, ...).
        dropout: Dropout probability in the encoder while training.
        embedding: Components of a loss token (Table 10). ``"task"`` alone makes m independent of the losses.
        readout: ``"mean"``: the projected mean of the encoded tokens, as in the paper. ``"shares"``: every token gives
            one logit z_t, and m(l) = sum_t a_t l_t with task weights a = (T+1) softmax(z). They depend on the losses
            but are treated as constants when m is differentiated by l. The weights are positive and their mean is 1, so
            the learning rate of the backbone keeps its meaning. Not in the paper.
        start: ``"sum"``: m(l) = sum(l) + correction(l) with a correction that starts at zero, so that every task weight
            starts at 1. ``"fit"``: no residual; call `fit_to_sum` before training. ``"random"``: as released; the task
            weights start near zero with random signs.

    Raises:
        ValueError: If `heads` does not divide `width`, or a choice is unknown.

    Warns:
        UserWarning: If ``embedding="task"``. The inner gradient is then zero (with ``start="sum"``: that of the plain
            sum), and no outer step can change that.
    """

    learned = True

    def __init__(
        self,
        losses: int | Sequence[str],
        *,
        width: int = 512,
        heads: int = 8,
        feedforward: int = 512,
        scale_hidden: int = 256,
        layers: int = 1,
        dropout: float = 0.0,
        embedding: Embedding = "scale+task",
        readout: Readout = "mean",
        start: Start = "sum",
    ) -> None:
        super().__init__(as_names(losses))
        _check_choices(width, heads, embedding, start)
        _check_readout(readout, start)
        self.embedding: Embedding = embedding
        self.readout: Readout = readout
        self.start: Start = start
        self._sizes = {
            "width": width,
            "heads": heads,
            "feedforward": feedforward,
            "scale_hidden": scale_hidden,
            "layers": layers,
            "dropout": dropout,
        }
        if "scale" in embedding:
            self.loss_fc1 = nn.Linear(1, scale_hidden)
            self.loss_fc2 = nn.Linear(scale_hidden, width)
        if "task" in embedding:
            self.task_embedding = nn.Embedding(len(self.names), width)
        stack = [
            nn.TransformerEncoderLayer(width, heads, feedforward, dropout=dropout, batch_first=True)
            for _ in range(layers)
        ]
        self.encoder: nn.Module = stack[0] if layers == 1 else nn.Sequential(*stack)
        self.fc1 = nn.Linear(width, 1, bias=False)
        if start == "sum":
            nn.init.zeros_(self.fc1.weight)

    @property
    def capturable(self) -> bool:
        """True unless dropout is active; a subclass may do what a graph cannot."""
        return type(self) is LossTransformer and not (self.training and any(map(_drops, self.modules())))

    def forward(self, losses: Tensor) -> Tensor:
        """Map losses of shape (T+1,) to m(l) of shape (); twice differentiable.

        Raises:
            ValueError: If the number of losses differs from the number that the transformer was built for.
        """
        if losses.shape != (len(self.names),):
            raise ValueError(
                f"expected {len(self.names)} losses {list(self.names)} of shape ({len(self.names)},), "
                f"got shape {tuple(losses.shape)}"
            )
        return self._combine(losses[None])[0]

    def _combine(self, losses: Tensor) -> Tensor:
        """Map losses of shape (N, T+1) to shape (N,)."""
        if self.readout == "shares":
            shares = self.fc1(self._encode(losses.detach()))[..., 0].softmax(-1)
            weighted: Tensor = len(self.names) * (shares * losses).sum(1)
            return weighted
        correction: Tensor = self.fc1(self._encode(losses).mean(1))[:, 0]
        return losses.sum(1) + correction if self.start == "sum" else correction

    def _encode(self, losses: Tensor) -> Tensor:
        """Map losses of shape (N, T+1) to encoded tokens of shape (N, T+1, width)."""
        tokens = torch.zeros(*losses.shape, 1, dtype=self.fc1.weight.dtype, device=losses.device)
        if "scale" in self.embedding:
            tokens = tokens + self.loss_fc2(self.loss_fc1(losses[..., None].to(tokens.dtype)).relu())
        if "task" in self.embedding:
            tokens = tokens + self.task_embedding.weight
        # The fused attention kernels have no second derivative, and the outer step differentiates m twice.
        with sdpa_kernel(SDPBackend.MATH):
            encoded: Tensor = self.encoder(tokens)
        return encoded

    def settings(self) -> dict[str, Any]:
        """Return the sizes and the variant."""
        return {**self._sizes, "embedding": self.embedding, "readout": self.readout, "start": self.start}

    def prepare(self, losses: Tensor) -> None:
        """With ``start="fit"``: fit m to the plain sum around the losses of the first step, shape (T+1,)."""
        if self.start == "fit":
            self.fit_to_sum(losses)

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Tensor], *, heads: int = 8, dropout: float = 0.0, start: Start = "random"
    ) -> LossTransformer:
        """Build a transformer with the sizes of a released state dict, and load the weights.

        Args:
            state: Keys ``task_embedding.weight``, ``loss_fc1.*``, ``loss_fc2.*``, ``encoder.*``, ``fc1.weight``.
            heads: Attention heads; the state dict does not contain their number.
            dropout: Dropout probability while training.
            start: ``"random"`` for released weights, which have no residual.

        Raises:
            ValueError: If keys are missing.
        """
        needed = ("task_embedding.weight", "loss_fc1.weight", "encoder.linear1.weight", "fc1.weight")
        missing = [key for key in needed if key not in state]
        if missing:
            raise ValueError(f"not a loss transformer of the released layout: missing {missing}, found {sorted(state)}")
        tasks, width = state["task_embedding.weight"].shape
        transformer = cls(
            tasks,
            width=width,
            heads=heads,
            feedforward=state["encoder.linear1.weight"].shape[0],
            scale_hidden=state["loss_fc1.weight"].shape[0],
            dropout=dropout,
            start=start,
        )
        transformer.to(state["fc1.weight"].dtype).load_state_dict(dict(state))
        return transformer

    def fit_to_sum(self, losses: Tensor, *, steps: int = 300, lr: float = 1e-3, seed: int = 0) -> float:
        """Train m to match the plain sum around `losses`, in value and slope.

        Args:
            losses: Loss values at the start of training, shape (T+1,): the fit covers 0 to twice each of them.
            steps: Adam steps of 16 random loss vectors each.
            lr: Adam's learning rate.
            seed: Seed of the random loss vectors.

        Returns:
            Largest ``|a_t - 1|`` at `losses` after the fit.
        """
        device, dtype = self.fc1.weight.device, self.fc1.weight.dtype
        centre = losses.detach().to(device=device, dtype=dtype)
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(self.parameters(), lr)
        for _ in range(steps):
            drawn = torch.rand(16, len(self.names), generator=generator).to(device=device, dtype=dtype)
            points = (2 * centre * drawn).requires_grad_()
            values = self._combine(points)
            (slopes,) = torch.autograd.grad(values.sum(), points, create_graph=True)
            error = (values - points.sum(1)).square().mean() + (slopes - 1).square().sum(1).mean()
            optimizer.zero_grad(set_to_none=True)
            error.backward()
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float((sensitivities(self, centre)[1] - 1).abs().max())


def _drops(module: nn.Module) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return bool(module.dropout > 0)
    return isinstance(module, nn.Dropout) and module.p > 0


def _check_choices(width: int, heads: int, embedding: str, start: str) -> None:
    if width % heads:
        raise ValueError(f"width={width} is not a multiple of heads={heads}")
    if embedding not in ("scale+task", "scale", "task"):
        raise ValueError(f"embedding must be 'scale+task', 'scale' or 'task', got {embedding!r}")
    if start not in ("sum", "fit", "random"):
        raise ValueError(f"start must be 'sum', 'fit' or 'random', got {start!r}")
    if embedding == "task":
        warnings.warn(
            "LossTransformer(embedding='task') cannot train: its output does not depend on the loss values, so the "
            "task weights are constant and the outer gradient is zero. Use 'scale+task' (the default) or 'scale'.",
            UserWarning,
            stacklevel=3,
        )


def _check_readout(readout: str, start: str) -> None:
    if readout not in ("mean", "shares"):
        raise ValueError(f"readout must be 'mean' or 'shares', got {readout!r}")
    if readout == "shares" and start == "fit":
        raise ValueError("readout='shares' starts at equal weights and has no start='fit'; use start='sum'")


def from_options(losses: Sequence[str], **options: Any) -> LossTransformer:
    """Build the combiner ``meltr``."""
    return LossTransformer(losses, **options)
