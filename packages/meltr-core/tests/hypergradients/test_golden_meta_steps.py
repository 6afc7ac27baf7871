"""The released code's meta steps, reproduced from its loss values and inner products."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from meltr import LossTransformer, sensitivities
from meltr.hypergradients.outer_gradient import outer_gradient
from places import CORE, shared

GOLDENS = CORE / "tests" / "goldens"


def sub(tensors, prefix):
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def assert_gradients(m, gradients, expected, *, relative):
    largest = max(float(t.abs().max()) for t in expected.values())
    for (name, _), gradient in zip(m.named_parameters(), gradients, strict=True):
        if name not in expected:
            assert gradient is None, name
            continue
        assert float((gradient - expected[name]).abs().max()) <= relative * largest, name


def test_outputs_on_probe_losses():
    golden = load_file(GOLDENS / "three_losses.safetensors")
    for weights, probe in (("weights.", "probe_retrieval"), ("qa.", "probe_qa")):
        m = LossTransformer.from_state_dict(sub(golden, weights))
        found = torch.stack([m(row) for row in golden[f"{probe}_losses"]])
        torch.testing.assert_close(found, golden[f"{probe}_out"], atol=2e-5, rtol=0)


def test_whole_meta_step_with_three_losses():
    golden, scalars = (
        load_file(GOLDENS / "three_losses.safetensors"),
        json.loads((GOLDENS / "three_losses.json").read_text()),
    )
    m = LossTransformer.from_state_dict(sub(golden, "weights."))
    losses, products = torch.tensor(scalars["train_losses"]), torch.tensor(scalars["c"], dtype=torch.float64)
    combined, _ = sensitivities(m, losses)
    assert float(combined) == pytest.approx(scalars["meltr_out"], abs=2e-5)
    objective = scalars["primary_val"] + scalars["gamma"] * abs(sum(scalars["train_losses"]) - float(combined))
    assert objective == pytest.approx(scalars["meta_val"], abs=2e-5)
    gradients = outer_gradient(m, losses, products)
    expected = sub(golden, "hypergrad.")
    assert_gradients(m, gradients, expected, relative=5e-4)
    for parameter, gradient in zip(m.parameters(), gradients, strict=True):
        parameter.grad = gradient
    total = torch.nn.utils.clip_grad_norm_(m.parameters(), scalars["max_norm"])
    assert float(total) == pytest.approx(scalars["grad_norm_before_clip"], rel=1e-4)
    torch.optim.AdamW(
        m.parameters(), scalars["lr"], betas=tuple(scalars["betas"]), weight_decay=scalars["weight_decay"]
    ).step()
    for name, parameter in m.named_parameters():
        clear = expected[name].abs() > 1e-3 if name in expected else torch.ones_like(parameter, dtype=torch.bool)
        torch.testing.assert_close(parameter[clear], golden[f"phi_after.{name}"][clear], atol=2e-6, rtol=0)
    assert float(sensitivities(m, losses)[0]) == pytest.approx(scalars["meltr_out_after"], abs=1e-5)


def test_output_and_slope_with_eight_losses():
    golden = load_file(GOLDENS / "eight_losses.safetensors")
    m = LossTransformer.from_state_dict(sub(golden, "init."))
    combined, a = sensitivities(m, golden["losses_in"])
    torch.testing.assert_close(combined, golden["combined"][0, 0], atol=1e-6, rtol=0)
    torch.testing.assert_close(a, golden["d_combined_d_losses"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", ["retrieval.reg", "retrieval.noreg", "caption.reg", "caption.noreg"])
def test_released_hypergradient_is_minus_grad_phi_of_a_times_g(case):
    """Eight numbers g explain all 4,616 entries of the released double-backward gradient: it is -grad_phi(a . g)."""
    golden = load_file(GOLDENS / "eight_losses.safetensors")
    m = LossTransformer.from_state_dict(sub(golden, "init.")).double()
    losses = golden["train_losses"].double()
    assert m(losses).item() == pytest.approx(float(golden[f"hyper.{case}.train_loss"]), abs=1e-6)
    expected = sub(golden, f"hyper.{case}.grad.")
    names = [name for name, _ in m.named_parameters() if name in expected]
    columns = []
    for unit in torch.eye(8, dtype=torch.float64):
        gradients = dict(zip([n for n, _ in m.named_parameters()], outer_gradient(m, losses, unit), strict=True))
        columns.append(torch.cat([gradients[name].flatten() for name in names]))
    matrix, target = torch.stack(columns, 1), torch.cat([expected[n].double().flatten() for n in names])
    g = torch.linalg.lstsq(matrix, target[:, None]).solution[:, 0]
    assert (matrix @ g - target).norm() <= 2e-4 * target.norm()
    assert len(target) > 4_000


def test_meta_steps_of_every_set_beside_the_project():
    sets = [f for f in sorted(shared("reference").glob("*/meltr.safetensors")) if "losses" in load_file(f)]
    if not sets:
        pytest.skip("no set with a complete meta step of two losses")
    for file in sets:
        golden, settings = load_file(file), json.loads((file.parent / "config.json").read_text())["meltr"]
        for primary, name in enumerate(settings["loss_order"]):
            m = LossTransformer.from_state_dict(sub(golden, "aux_model."), heads=settings["nhead"])
            losses = golden["losses"]
            combined, a = sensitivities(m, losses)
            torch.testing.assert_close(a, golden["daux_dlosses"], atol=1e-6, rtol=0)
            objective = losses[primary] + settings["gamma"] * (losses.sum() - combined).abs()
            torch.testing.assert_close(objective, golden[f"{name}/primary_loss"].reshape(()), atol=2e-5, rtol=0)
            gradients = outer_gradient(m, losses, golden[f"{name}/inner_products"])
            assert_gradients(m, gradients, sub(golden, f"{name}/hypergrad/"), relative=1e-4)
            for parameter, gradient in zip(m.parameters(), gradients, strict=True):
                parameter.grad = gradient
            total = torch.nn.utils.clip_grad_norm_(m.parameters(), settings["max_grad_norm"])
            torch.testing.assert_close(total, golden[f"{name}/hypergrad_norm"], rtol=1e-4, atol=0)
            adam = settings["adam"]
            torch.optim.Adam(
                m.parameters(), adam["lr"], betas=adam["betas"], eps=adam["eps"], weight_decay=adam["weight_decay"]
            ).step()
            for key, parameter in m.named_parameters():
                if key != "encoder.self_attn.in_proj_bias":  # its key third has a true gradient of zero
                    torch.testing.assert_close(parameter.detach(), golden[f"{name}/phi_after/{key}"], atol=5e-6, rtol=0)
