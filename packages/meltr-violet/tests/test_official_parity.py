"""The official VIOLET, reproduced: every golden set below MELTR_GOLDENS, in float32 and float64.

Tolerances are those of the sets' description: features and logits 5e-5, losses 2e-5 and so on in float32; 3e-6 in
float64, where the stored values are rounded to float32.
"""

from __future__ import annotations

import re

import pytest
import torch

from meltr import Bilevel, LossTransformer
from meltr.hypergradients.outer_gradient import outer_gradient
from meltr.metrics.classification import IGNORED
from meltr.video.losses import cross_entropy
from meltr_violet.losses.masking import Masks, black_out, code_targets, masks_at
from meltr_violet.losses.pretraining import matching_scores, pretraining_losses
from meltr_violet.losses.released import mask_choices
from meltr_violet.losses.tasks import LossSettings, task_losses
from meltr_violet.losses.tasks import _Passes as Passes
from meltr_violet.model.scoring import answer_logits, choice_logits, score_pairs
from meltr_violet.model.violet import visible
from meltr_violet.weights.official import TIED_BIAS, to_official

PRECISE = 3e-6
CASES = {"meltr_retrieval": ("vtm", "mtm", "mvm"), "meltr_qaoe": ("answer", "vtm", "mtm", "mvm")}


def close(golden, found, expected, float32: float) -> None:
    tolerance = PRECISE if golden.dtype == torch.float64 else float32
    torch.testing.assert_close(
        found.to(golden.dtype), torch.as_tensor(expected, dtype=golden.dtype), atol=tolerance, rtol=0
    )


def features(golden, found, expected) -> None:
    close(golden, found, expected, 5e-5)


def losses_close(golden, found: dict, expected: dict) -> None:
    for name, value in found.items():
        close(golden, value, expected["oe" if name == "answer" and "oe" in expected else name], 2e-5)


def settings_of(golden, **changes) -> LossSettings:
    return LossSettings(temperature=golden.config["vtm_temperature"], **changes)


def masks_of(case: dict) -> Masks:
    return Masks(case["m_txt"], case["ans_mtm"], case["cells"])


@pytest.fixture
def eval_model(golden):
    with torch.no_grad():
        yield golden.model().eval()


@pytest.fixture
def eval_qa_model(golden):
    with torch.no_grad():
        yield golden.model(qa=True).eval()


def test_special_tokens(golden_files):
    assert golden_files.config["special_tokens"] == {"pad": 0, "cls": 101, "sep": 102, "mask": 103}


def test_video_branch_of_every_clip(golden, eval_model):
    expected, video = golden.tensors("out_video"), eval_model.video
    seen = 0
    for name in golden.tensors("inputs"):
        found = re.fullmatch(r"video(_.*)?_u8", name)
        if found is None:
            continue
        suffix = found[1] or ""
        seen += 1
        swin = video.swin(video.normalised(golden.clip(name))).permute(0, 4, 1, 2, 3)
        features(golden, swin, expected[f"swin{suffix}"])
        if f"feat_img{suffix}" in expected:
            features(golden, video(golden.clip(name)), expected[f"feat_img{suffix}"])
    assert seen
    index = eval_model.video.swin.blocks()[0].attn.relative_position_index
    assert torch.equal(index, expected["relative_position_index"].long())


def test_stages_of_the_video_branch(golden, eval_model):
    expected, swin = golden.tensors("out_video"), eval_model.video.swin
    state = swin.patch_embed(eval_model.video.normalised(golden.clip()[:1]))
    features(golden, state.permute(0, 4, 1, 2, 3), expected["swin_patch_embed"])
    for place, stage in enumerate(swin.features):
        state = stage(state)
        if place % 2 or place == len(swin.features) - 1:  # after patch merging, and after the last stage
            features(golden, state.permute(0, 4, 1, 2, 3), expected[f"swin_layer{place // 2}"])


def test_text_and_cross_modal_outputs(golden, eval_model):
    expected, inputs = golden.tensors("out_cross"), golden.tensors("inputs")
    ids = inputs["txt"]
    assert torch.equal((ids != 0).long(), inputs["mask"])
    video, text = eval_model.encode_video(golden.clip()), eval_model.embed_text(ids)
    features(golden, text, expected["feat_txt"])
    states, length = eval_model.join(video, text, ids), video.shape[1]
    features(golden, states, expected["cross"])
    features(golden, eval_model.vtm(states[:, length])[:, 0], expected["vtm_raw"])
    features(golden, eval_model.mtm(states[:, length:]), expected["mtm_logits_unmasked"])
    features(golden, eval_model.attention_received(video, text, ids), expected["att_received"])
    probabilities = list(eval_model.cross.attention(torch.cat([video, text], 1), visible(video, ids)))
    for name, tensor in expected.items():
        if found := re.fullmatch(r"attn_layer(\d+)_sample(\d+)", name):
            features(golden, probabilities[int(found[1])][int(found[2])], tensor)


def test_pretraining_objective_with_both_mask_kinds(golden, eval_model):
    case, scalars = golden.tensors("case_pretrain"), golden.json("losses.json")
    batch, masks = golden.batch(), masks_of(case)
    assert torch.equal(code_targets(batch.codes, masks.cells), case["ans_mvm"])
    temperature = golden.config["vtm_temperature"]
    losses = pretraining_losses(eval_model, batch, masks, case["neg"], temperature=temperature)
    losses_close(golden, losses, scalars["pretrain"])
    close(golden, sum(losses.values()), scalars["pretrain"]["sum"], 2e-5)
    video = eval_model.encode_video(black_out(batch.frames, masks.cells, eval_model.config.cell))
    text = eval_model.embed_text(masks.ids)
    states, length = eval_model.join(video, text, masks.ids), video.shape[1]
    features(golden, eval_model.mtm(states[:, length:]), case["mtm_logits"])
    features(golden, eval_model.mvm(states[:, :length]), case["mvm_logits"])
    scores = matching_scores(eval_model, video, text, masks.ids, own=states[:, length], negatives=case["neg"])
    features(golden, scores / temperature, case["vtm_logits"])
    for sample, positions in scalars["pretrain_attended_positions"].items():
        row = int(sample)
        assert case["mask_kind"][row] == 1
        found = masks_at(torch.tensor([positions]), batch.ids[row : row + 1], (1, *case["cells"].shape[1:]))
        assert torch.equal(found.cells[0], case["cells"][row])
        assert torch.equal(found.ids[0], case["m_txt"][row])
        assert torch.equal(found.text_targets[0], case["ans_mtm"][row])


def test_original_retrieval_and_its_evaluation(golden, eval_model):
    case, scalars = golden.tensors("case_retrieval_original"), golden.json("losses.json")
    batch = golden.batch()
    nothing = Masks(batch.ids, torch.full_like(batch.ids, IGNORED), torch.zeros_like(batch.codes, dtype=torch.bool))
    passes = Passes(eval_model, batch, nothing, settings_of(golden))
    scores, right = passes.matching_scores()
    logits = scores / golden.config["vtm_temperature"]
    features(golden, logits, case["logits"])
    expected = scalars["retrieval_original"]
    close(golden, cross_entropy(logits, right), expected["loss"], 2e-5)
    assert float((logits.argmax(1) == right).double().mean()) == pytest.approx(expected["acc"])
    scores = score_pairs(eval_model, eval_model.encode_video(batch.frames), batch.ids, pairs_per_pass=3)
    features(golden, scores, case["eval_scores"])
    order = scores.sort(dim=1, descending=True, stable=True).indices
    ranks = 1 + (order == torch.arange(len(scores))[:, None]).long().argmax(1)
    expected = scalars["retrieval_eval"]
    assert ranks.tolist() == expected["ranks"]
    for depth in (1, 5, 10):
        assert float((ranks <= depth).double().mean()) == pytest.approx(expected[f"r{depth}"])
    assert int(ranks.double().quantile(0.5)) == expected["median"]


@pytest.mark.parametrize("name", CASES)
def test_meltr_losses_and_logits(golden, name):
    case, scalars = golden.tensors(f"case_{name}"), golden.json("losses.json")
    answers = "ans_oe" if name == "meltr_qaoe" else None
    model, batch, masks = golden.model(qa=answers is not None).eval(), golden.batch(answer=answers), masks_of(case)
    settings = settings_of(golden, clip="masked")
    assert torch.equal(code_targets(batch.codes, masks.cells), case["ans_mvm"])
    with torch.no_grad():
        losses_close(golden, task_losses(model, batch, masks, wanted=CASES[name], settings=settings), scalars[name])
        passes = Passes(model, batch, masks, settings)
        features(golden, passes.matching_scores()[0] / settings.temperature, case["vtm_logits"])
        length = batch.ids.shape[1]
        features(golden, model.mtm(passes.masked_states[:, -length:]), case["mtm_logits"])
        features(golden, model.mvm(passes.masked_states[:, :-length]), case["mvm_logits"])
        if answers:
            frames = black_out(batch.frames, masks.cells, model.config.cell)
            features(golden, answer_logits(model, frames, batch.ids), case["oe_logits"])
            passes.answer()
            features(golden, passes.matching_scores()[0] / settings.temperature, case["vtm_logits"])


def test_original_question_answering(golden, eval_qa_model):
    case, scalars = golden.tensors("case_qa_original"), golden.json("losses.json")
    batch, choices = golden.batch(answer="ans_oe"), golden.choices()
    logits = answer_logits(eval_qa_model, batch.frames, batch.ids)
    features(golden, logits, case["oe_logits"])
    close(golden, cross_entropy(logits, batch.answer), scalars["qaoe_original"]["loss"], 2e-5)
    assert float((logits.argmax(1) == batch.answer).double().mean()) == pytest.approx(scalars["qaoe_original"]["acc"])
    logits = choice_logits(eval_qa_model, choices.frames, choices.ids, pairs_per_pass=3)
    features(golden, logits, case["mc_logits"])
    close(golden, cross_entropy(logits, choices.answer), scalars["qamc_original"]["loss"], 2e-5)
    assert float((logits.argmax(1) == choices.answer).double().mean()) == pytest.approx(scalars["qamc_original"]["acc"])


def test_released_multiple_choice_with_its_defects(golden, eval_qa_model):
    case, scalars = golden.tensors("case_meltr_qamc"), golden.json("losses.json")["meltr_qamc"]
    batch, model = golden.choices(), eval_qa_model
    ids, targets = mask_choices(batch.ids, case["column_mask"])
    assert torch.equal(ids, case["m_txt"])
    assert torch.equal(targets, case["ans_mtm"])
    assert torch.equal(code_targets(batch.codes, case["cells"]), case["ans_mvm"])
    masks = Masks(ids, targets, case["cells"])
    settings = settings_of(golden, clip="masked", released_choice=True)
    losses = task_losses(model, batch, masks, wanted=("answer", "vtm", "mtm", "mvm"), settings=settings)
    losses_close(golden, losses, {**scalars, "answer": scalars["mc"]})
    passes, length = Passes(model, batch, masks, settings), ids.shape[-1]
    features(golden, passes.matching_scores()[0] / settings.temperature, case["vtm_logits"])
    features(golden, model.mtm(passes.masked_states[:, -length:]), case["mtm_logits"])
    right = passes.masked_states[batch.own_rows]
    features(golden, model.mvm(right[:, :-length]), case["mvm_logits_answer"])
    frames = black_out(batch.frames, masks.cells, model.config.cell)
    features(golden, choice_logits(model, frames, batch.ids), case["mc_logits"])


def sub(tensors, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def loss_transformer(golden, task: str) -> LossTransformer:
    weights = sub(golden.tensors("weights_meltr"), f"{task}.")
    return LossTransformer.from_state_dict(weights, heads=golden.config["meltr"]["nhead"]).to(golden.dtype)


def retrieval_losses(golden, model, rows, wanted=CASES["meltr_retrieval"]) -> dict:
    case = golden.tensors("case_meltr_retrieval")
    masks = Masks(case["m_txt"][rows], case["ans_mtm"][rows], case["cells"][rows])
    return task_losses(model, golden.batch(rows), masks, wanted=wanted, settings=settings_of(golden, clip="masked"))


def within(golden, found, expected, float32: float) -> None:
    """Every element to a part of the largest one."""
    part = PRECISE if golden.dtype == torch.float64 else float32
    torch.testing.assert_close(found.to(expected), expected, atol=part * float(expected.abs().max()), rtol=0)


def test_combined_losses(golden):
    case, scalars = golden.tensors("case_meltr"), golden.json("losses.json")
    for task in ("retrieval", "qa"):
        m = loss_transformer(golden, task)
        found = torch.stack([m(row) for row in case[f"probe_{task}_losses"]])
        features(golden, found, case[f"probe_{task}_out"])
    for name, order in (("retrieval", "vtm mtm mvm"), ("qaoe", "oe vtm mtm mvm"), ("qamc", "mc vtm mtm mvm")):
        losses = torch.tensor([scalars[f"meltr_{name}"][loss] for loss in order.split()], dtype=golden.dtype)
        m = loss_transformer(golden, "retrieval" if name == "retrieval" else "qa")
        close(golden, m(losses), scalars[f"meltr_combined_{name}"], 2e-5)


def test_inner_step(golden):
    expected, norms = golden.json("losses.json")["inner_step"], golden.json("grad_norms_inner_step.json")
    model, m = golden.model(), loss_transformer(golden, "retrieval")
    optimizer = torch.optim.AdamW(
        model.parameters(), expected["lr"], betas=tuple(expected["betas"]), weight_decay=expected["weight_decay"]
    )
    meltr = Bilevel(model, m, None)
    result = meltr.backward(lambda: retrieval_losses(golden, model, expected["batch"]))
    close(golden, result.losses, expected["losses_before"], 2e-5)
    close(golden, result.combined, expected["meltr_before"], 2e-5)
    found = {to_official(name): parameter.grad.norm() for name, parameter in model.named_parameters()}
    found[TIED_BIAS] = found.pop("fc_mtm.predictions.decoder.bias")
    assert found.keys() == norms.keys()
    relative = PRECISE if golden.dtype == torch.float64 else 1e-4
    zero = torch.finfo(golden.dtype).eps * expected["total_grad_norm"]  # key biases have no gradient but rounding
    for name, norm in norms.items():
        assert float(found[name]) == pytest.approx(norm, rel=relative, abs=zero), name
    assert float(torch.stack(list(found.values())).norm()) == pytest.approx(expected["total_grad_norm"], rel=relative)
    optimizer.step()
    with torch.no_grad():
        losses = torch.stack(list(retrieval_losses(golden, model, expected["batch"]).values()))
        close(golden, losses, expected["losses_after"], 1e-4)
        close(golden, m(losses), expected["meltr_after"], 1e-4)


@pytest.mark.parametrize("estimator", ["per_task", "forward", "double_backward"])
def test_meta_step(golden, estimator):
    expected, case = golden.json("losses.json")["meta_step"], golden.tensors("case_meltr")
    model, m = golden.model(), loss_transformer(golden, "retrieval")
    before = {name: parameter.detach().clone() for name, parameter in m.named_parameters()}
    optimizer = torch.optim.AdamW(
        m.parameters(), expected["lr"], betas=tuple(expected["betas"]), weight_decay=expected["weight_decay"]
    )
    meltr = Bilevel(
        model, m, optimizer, gamma=expected["gamma"], estimator_name=estimator, outer_clip_norm=expected["max_norm"]
    )
    seen: list[torch.Tensor] = []

    def note(losses):
        seen.append(torch.stack([loss.detach() for loss in losses.values()]))
        return losses

    result = meltr.outer_step(
        lambda: note(retrieval_losses(golden, model, expected["batch_val"], ("vtm",))),
        lambda: note(retrieval_losses(golden, model, expected["batch_train"])),
    )
    primary, train = seen[0][0], seen[1]
    close(golden, primary, expected["primary_val"], 2e-5)
    close(golden, train, expected["train_losses"], 2e-5)
    original = loss_transformer(golden, "retrieval")
    close(golden, original(train), expected["meltr_out"], 2e-5)
    objective = primary + expected["gamma"] * (train.sum() - original(train)).abs()
    close(golden, objective, expected["meta_val"], 2e-5)
    within(golden, result.products, torch.tensor(expected["c"], dtype=torch.float64), 5e-4)
    relative = PRECISE if golden.dtype == torch.float64 else 1e-4
    assert float(result.gradient_norm) == pytest.approx(expected["grad_norm_before_clip"], rel=relative)
    hypergradients = sub(case, "hypergrad.")
    gradients = outer_gradient(original, train, result.products)
    for (name, _), gradient in zip(original.named_parameters(), gradients, strict=True):
        if name in hypergradients:
            within(golden, gradient, hypergradients[name], 5e-4)
        else:
            assert gradient is None, name
    for name, parameter in m.named_parameters():
        if name not in hypergradients:
            assert torch.equal(parameter, before[name]), name
            continue
        clear = hypergradients[name].abs() > 1e-3
        expected_values = case[f"phi_after.{name}"][clear]
        torch.testing.assert_close(parameter.detach()[clear], expected_values, atol=2e-6, rtol=0)
    close(golden, m(train), expected["meltr_out_after"], 1e-4)
