"""The combiner ``torchjd``: what the library computes, split over parameters, saved, and its errors in our words."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from meltr import Bilevel, sensitivities
from meltr.combiners.base import GradientCombiner, SelfTrained
from meltr.combiners.torchjd_ import from_options
from meltr.engine.checkpoints import load_module, save_module
from meltr.errors import MeltrError, UserError
from meltr.plugins import discover, load_object
from meltr.settings import resolve
from places import TOY

NAMES = ("a", "b", "c")
LOSSES = torch.tensor([0.7, 2.0, 5.0])
WEIGHED = {
    "AlignedMTL": {"scale_mode": "median"},
    "CAGrad": {"c": 0.4},
    "DualProj": {},
    "FairGrad": {"alpha": 1.0},
    "GradVac": {"beta": 0.3},
    "IMTLG": {},
    "Krum": {"n_byzantine": 0, "n_selected": 2},
    "MGDA": {},
    "NashMTL": {},
    "PCD": {},
    "PCGrad": {},
    "UPGrad": {"pref_vector": [1.0, 0.5, 2.0]},
}
WHOLE = {"ConFIG": {}, "GradDrop": {"leak": [0.5, 0.0, 0.2]}, "TrimmedMean": {"trim_number": 1}}


@pytest.fixture(autouse=True)
def aggregation():
    return pytest.importorskip("torchjd.aggregation", reason="needs the library TorchJD")


def build(method, **options):
    """Build the combiner, or skip where something that the method needs is not installed."""
    try:
        return from_options(NAMES, method=method, method_options=options)
    except UserError as error:
        if isinstance(error.__cause__, ImportError):
            pytest.skip(error.message)
        raise


def make_rows(seed=0, dtype=torch.float32):
    """Gradients by four parameters: one only task 0 needs, one no task needs."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    return [
        [draw(2, 3), None, draw(4), draw(5)],
        [draw(2, 3), None, 3 * draw(4), None],
        [0.2 * draw(2, 3), None, draw(4), None],
    ]


def matrix_of(rows):
    columns = [column for column in zip(*rows, strict=True) if any(part is not None for part in column)]
    sizes = [next(part for part in column if part is not None).numel() for column in columns]
    return torch.stack(
        [
            torch.cat(
                [torch.zeros(size) if part is None else part.flatten() for part, size in zip(row, sizes, strict=True)]
            )
            for row in zip(*columns, strict=True)
        ]
    )


def flat(gradient):
    return torch.cat([part.flatten() for part in gradient if part is not None])


def library(aggregation, method, options):
    arguments = {key: torch.tensor(value) if isinstance(value, list) else value for key, value in options.items()}
    return getattr(aggregation, method)(**({"n_tasks": 3} if method == "NashMTL" else {}), **arguments)


@pytest.mark.parametrize(("method", "options"), {**WEIGHED, **WHOLE}.items(), ids=[*WEIGHED, *WHOLE])
def test_the_gradient_is_what_the_library_makes_of_the_whole_matrix(aggregation, method, options):
    combiner = build(method, **options)
    assert isinstance(combiner, GradientCombiner)
    assert not combiner.learned
    reference = library(aggregation, method, options)
    for seed in range(3):
        rows = make_rows(seed)
        torch.manual_seed(seed)
        expected = reference(matrix_of(rows))
        torch.manual_seed(seed)
        gradient, a = combiner.from_gradients(LOSSES, rows)
        assert [None if part is None else part.shape for part in gradient] == [(2, 3), None, (4,), (5,)]
        torch.testing.assert_close(flat(gradient), expected, atol=1e-4, rtol=1e-3)
        assert a.shape == (3,)


@pytest.mark.parametrize(("method", "options"), [*WEIGHED.items(), ("ConFIG", {})], ids=[*WEIGHED, "ConFIG"])
def test_the_gradient_is_the_combination_of_the_rows_by_the_weights(method, options):
    rows = make_rows()
    gradient, a = build(method, **options).from_gradients(LOSSES, rows)
    torch.testing.assert_close(flat(gradient), a @ matrix_of(rows), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["GradDrop", "TrimmedMean"])
def test_the_weights_of_a_direction_outside_the_rows_are_the_nearest(method):
    rows = make_rows()
    gradient, a = build(method, **WHOLE[method]).from_gradients(LOSSES, rows)
    matrix = matrix_of(rows)
    rest = flat(gradient) - a @ matrix
    assert float(rest.norm()) > 0.1
    torch.testing.assert_close(matrix @ rest, torch.zeros(3), atol=1e-4, rtol=0)


def test_the_nearest_weights_of_rows_that_are_parallel_are_the_smallest():
    """A third of a row is parallel to it up to rounding, which must not blow the weights up."""
    rows = make_rows()
    rows[1] = [None if part is None else part / 3 for part in rows[0]]
    gradient, a = build("ConFIG").from_gradients(LOSSES, rows)
    assert float(a.norm()) < 20
    assert float(a[0] / a[1]) == pytest.approx(3, rel=1e-3)
    torch.testing.assert_close(flat(gradient), a @ matrix_of(rows), atol=1e-3, rtol=1e-3)


def test_upgrad_never_conflicts_with_a_task():
    """J u >= 0, up to the 1e-4 that the library adds to the diagonal of the normalised J J^T."""
    combiner = build("UPGrad")
    conflicts = 0
    for seed in range(20):
        rows = make_rows(seed)
        matrix = matrix_of(rows)
        matrix[2] -= matrix[0] + matrix[1]
        rows = [[row] for row in matrix]
        (gradient,), _ = combiner.from_gradients(LOSSES, rows)
        slack = 1e-3 * float(matrix.norm() ** 2)
        assert float((matrix @ gradient).min()) >= -slack
        conflicts += float((matrix @ matrix.sum(0)).min()) < -slack
    assert conflicts > 10


def test_mgda_finds_the_shortest_combination():
    """Of two gradients: weight (g2 - g1) . g2 / ||g1 - g2||^2 for the first, kept within 0 and 1."""
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        g1, g2 = torch.randn(2, 6, generator=generator) + 0.5
        combiner = from_options(("a", "b"), method="MGDA", method_options={"epsilon": 1e-6, "max_iters": 1000})
        (gradient,), a = combiner.from_gradients(LOSSES[:2], [[g1], [g2]])
        first = float((((g2 - g1) @ g2) / (g1 - g2).square().sum()).clamp(0, 1))
        torch.testing.assert_close(a, torch.tensor([first, 1 - first]), atol=1e-4, rtol=0)
        torch.testing.assert_close(gradient, first * g1 + (1 - first) * g2, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["MGDA", "GradDrop"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_gradient_has_the_type_of_the_parameters(method, dtype):
    gradient, a = build(method).from_gradients(LOSSES, make_rows(dtype=dtype))
    assert [None if part is None else part.dtype for part in gradient] == [dtype, None, dtype, dtype]
    assert a.dtype == torch.float32


@pytest.mark.parametrize("method", ["GradVac", "PCD", "NashMTL"])
def test_methods_with_a_state_continue_from_a_checkpoint(method, tmp_path):
    """The last task has no gradient in the end: NashMTL then finds nothing and falls back on what it remembers."""
    combiner = build(method)

    def step(each, seed, *, zero=False):
        torch.manual_seed(seed)
        rows = make_rows(seed)
        return each.from_gradients(LOSSES, [*rows[:2], [None] * 4] if zero else rows)[1]

    for seed in range(3):
        step(combiner, seed)
    save_module(tmp_path / "combiner.safetensors", combiner)
    again, fresh = build(method), build(method)
    load_module(tmp_path / "combiner.safetensors", again, "combiner")
    expected = step(combiner, 3, zero=True)
    assert torch.equal(step(again, 3, zero=True), expected)
    assert not torch.allclose(step(fresh, 3, zero=True), expected)
    assert torch.equal(step(again, 4), step(combiner, 4))


@pytest.mark.parametrize("method", ["UPGrad", "PCGrad", "GradDrop", "IMTLL", "GeometricMean"])
def test_methods_train_a_model_in_a_plain_loop(method):
    torch.manual_seed(0)
    model, points = torch.nn.Linear(4, 3), torch.randn(64, 4)
    target = points @ torch.randn(4, 3)
    combiner = build(method)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    outer = torch.optim.Adam(combiner.parameters(), 0.01) if isinstance(combiner, SelfTrained) else None
    bilevel = Bilevel(model, combiner, outer)
    found = []
    for _ in range(80):
        optimizer.zero_grad()
        found.append(bilevel.backward(lambda: list((model(points) - target).square().mean(0))).losses)
        optimizer.step()
    assert bool((found[-1] < 0.1 * found[0]).all())


def test_stch_is_the_smooth_maximum():
    combiner = build("STCH", mu=0.5, weights=[0.2, 0.5, 0.3])
    assert not isinstance(combiner, SelfTrained)
    scaled = torch.tensor([0.2, 0.5, 0.3]) * LOSSES / 0.5
    value, a = sensitivities(combiner, LOSSES)
    torch.testing.assert_close(value, 0.5 * scaled.logsumexp(0))
    torch.testing.assert_close(a, torch.tensor([0.2, 0.5, 0.3]) * scaled.softmax(0))


def test_imtll_is_trained_along_with_the_backbone():
    """m(l) = sum exp(s) l - s, so dm/ds = exp(s) l - 1."""
    combiner = build("IMTLL")
    assert isinstance(combiner, SelfTrained)
    assert not combiner.learned
    (scales,) = combiner.parameters()
    scales.data = torch.tensor([-1.0, 0.0, 0.5])
    (gradient,) = combiner.own_gradients(SimpleNamespace(losses=LOSSES))
    torch.testing.assert_close(gradient, torch.tensor([-1.0, 0.0, 0.5]).exp() * LOSSES - 1)


@pytest.mark.parametrize(("method", "weight"), [("Mean", 1 / 3), ("Sum", 1.0)])
def test_what_is_both_is_taken_as_a_scalarizer(method, weight):
    combiner = build(method)
    assert not isinstance(combiner, GradientCombiner)
    torch.testing.assert_close(sensitivities(combiner, LOSSES)[1], torch.full((3,), weight))


def test_option_vectors_move_with_the_combiner():
    """The library keeps them as plain attributes; here seen by their type, as a CPU has only one device."""
    moved = build("PBI", theta=2.0, weights=[1.0, 2.0, 3.0]).double()
    assert moved.scalarizer.weights.dtype == torch.float64


def test_losses_in_float64_are_combined_too():
    _, a = sensitivities(build("PBI", theta=2.0, weights=[1.0, 2.0, 3.0]), LOSSES.double())
    assert a.dtype == torch.float64


def test_settings_tell_how_to_build_it_again():
    combiner = build("STCH", mu=0.5)
    again = from_options(NAMES, **combiner.settings())
    assert float(again(LOSSES)) == float(combiner(LOSSES))


@pytest.mark.parametrize(
    ("method", "options", "message", "hint"),
    [
        ("UPgrad", {}, "no method 'UPgrad'", "Did you mean 'UPGrad'"),
        ("FAMO", {}, "FAMO is not used here", "--combiner famo"),
        ("DWA", {}, "DWA is not used here", "--combiner dwa"),
        ("ExcessMTL", {}, "no method 'ExcessMTL' that can be used here", "CAGrad"),
        ("MGDAWeighting", {}, "no method 'MGDAWeighting'", "MGDA"),
        ("STCH", {}, "STCH needs method_options: mu", "Options of STCH (--set method_options={name: value}): mu, "),
        ("MGDA", {"eps": 1}, "MGDA has no option 'eps'", "epsilon=0.001, max_iters=100"),
        ("NashMTL", {"update_weights_every": 2}, "no option 'update_weights_every'", "max_norm=1.0"),
        ("MGDA", {"epsilon": -1.0}, "refuses {'epsilon': -1.0} for 3 losses: epsilon must be positive", "max_iters"),
        ("Constant", {"weights": [1.0, 2.0]}, "refuses {'weights': [1.0, 2.0]} for 3 losses", "weights"),
        ("TrimmedMean", {"trim_number": 2}, "for 3 losses", "trim_number"),
        ("GradDrop", {"leak": [0.5]}, "for 3 losses", "leak=None"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(method, options, message, hint):
    with pytest.raises(UserError) as caught:
        from_options(NAMES, method=method, method_options=options)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_missing_library_is_an_error_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(UserError, match="needs the library TorchJD") as caught:
        from_options(NAMES, method="UPGrad", method_options={})
    assert caught.value.hint == 'Install it: pip install "meltr-core[torchjd]"'


def test_what_a_method_needs_besides_is_named_with_the_command(monkeypatch, aggregation):
    class Needy(aggregation.MGDA):
        def __init__(self):
            raise ImportError("Needy requires ['solver'] to be installed. Install them with: pip install \"x[y]\"")

    monkeypatch.setattr(aggregation, "MGDA", Needy)
    with pytest.raises(UserError) as caught:
        from_options(NAMES, method="MGDA", method_options={})
    assert caught.value.message == "TorchJD's MGDA cannot be built: Needy requires ['solver'] to be installed."
    assert caught.value.hint == 'Install them: pip install "x[y]"'


def test_the_library_is_not_imported_before_it_is_needed():
    code = "import sys, meltr.combiners.torchjd_; assert not [m for m in sys.modules if m.startswith('torchjd')]"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert discover().combiner("torchjd").factory.startswith("meltr.combiners.torchjd_:")


@pytest.mark.parametrize("method", ["UPGrad", "GradVac", "GradDrop", "NashMTL"])
def test_a_gradient_that_is_not_finite_is_not_hidden_and_leaves_no_trace(method):
    """A gradient scaler must see it and leave the step out; what the method remembers stays sound."""
    combiner = build(method)
    before = {name: value.clone() for name, value in combiner.state_dict().items()}
    rows = make_rows()
    rows[1][0][0, 0] = float("inf")
    gradient, a = combiner.from_gradients(LOSSES, rows)
    assert not gradient[0].isfinite().all()
    torch.testing.assert_close(a, torch.ones(3))
    torch.testing.assert_close(dict(combiner.state_dict()), before)


def test_losses_that_a_method_is_not_made_for_are_an_error_without_traceback():
    with pytest.raises(MeltrError, match=r"GeometricMean failed: .*negative"):
        build("GeometricMean")(torch.tensor([1.0, -1.0, 2.0]))


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("{mu: 1e-2, weights: [1, 2, 3e-1]}", {"mu": 0.01, "weights": [1.0, 2.0, 0.3]}),
        ("{scale_mode: median}", {"scale_mode": "median"}),
        ("{max_iters: 7, epsilon: null}", {"max_iters": 7, "epsilon": None}),
    ],
)
def test_options_can_be_typed(typed, expected):
    registry = discover([TOY])
    spec = resolve(
        registry,
        backbone="toy",
        task="classification",
        dataset="rings",
        flags={"combiner": "torchjd"},
        sets=["method=STCH", f"method_options={typed}"],
    )
    assert spec.combiner_options == {"method": "STCH", "method_options": expected}
    assert [type(each) for each in spec.combiner_options["method_options"].values()] == [
        type(each) for each in expected.values()
    ]


def test_the_default_is_built_from_the_registered_options():
    info = discover().combiner("torchjd")
    options = load_object(info.options)().model_dump(mode="json")
    assert options["method"] == "UPGrad"
    assert build(options["method"], **options["method_options"]).learned == info.learned is False
