from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from meltr import UserError
from meltr_violet.model.config import TINY
from meltr_violet.model.violet import Violet
from meltr_violet.weights.official import TIED_BIAS, to_official
from meltr_violet.weights.pretrained import load_bert, load_checkpoint, load_video_swin, official_state

QA = ("vtm", "mtm", "mvm", "answer")


def model(heads=("vtm", "mtm", "mvm"), *, seed: int = 1, answers: int = 5, config=TINY) -> Violet:
    torch.manual_seed(seed)
    made = Violet(config, heads=heads, answers=answers)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made


@pytest.fixture
def published(tmp_path):
    """A checkpoint of the official layout, as the pre-training script writes it, and its model."""
    source = model(seed=0)
    state = official_state(source)
    state["enc_txt.emb_txt.position_ids"] = torch.arange(512)[None]
    file = tmp_path / "ckpt_violet_pretrain.pt"
    torch.save(state, file)
    return file, source


def assert_same(one: Violet, other: Violet, prefixes: tuple[str, ...]) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert any(name.startswith(prefixes) for name in mine)
    for name, value in mine.items():
        if name.startswith(prefixes):
            assert torch.equal(value, theirs[name]), name


def test_published_checkpoint_fills_a_retrieval_model(published):
    file, source = published
    fresh = model()
    report = load_checkpoint(fresh, file)
    assert report.complete
    assert report.unexpected == ()
    assert_same(fresh, source, ("video.", "text.", "cross.", "vtm.", "mtm.", "mvm."))
    known = set(report.loaded) | {name for name in fresh.state_dict() if "index" in name}
    assert known == set(fresh.state_dict())
    assert set(report.ignored) == {key for key in torch.load(file, weights_only=True) if "index" in key} | {
        TIED_BIAS,
        "enc_txt.emb_txt.position_ids",
    }


def test_index_buffers_may_be_absent_and_safetensors_will_do(published, tmp_path):
    file, source = published
    state = {k: v.contiguous() for k, v in torch.load(file, weights_only=True).items() if "index" not in k}
    del state[TIED_BIAS]
    save_file(state, tmp_path / "violet.safetensors")
    fresh = model()
    report = load_checkpoint(fresh, tmp_path / "violet.safetensors")
    assert report.complete
    assert_same(fresh, source, ("video.", "cross.", "mtm."))


def test_answering_model_says_what_stays_random(published):
    file, source = published
    fresh = model(QA)
    before = fresh.answer[3].weight.clone()
    report = load_checkpoint(fresh, file)
    assert report.missing == ("answer.1.weight", "answer.1.bias", "answer.3.weight", "answer.3.bias")
    assert torch.equal(fresh.answer[3].weight, before)
    assert_same(fresh, source, ("vtm.",))
    assert "4 stay as initialised (answer)" in str(report)
    released = model(QA)
    report = load_checkpoint(released, file, fc="none")
    assert [name.partition(".")[0] for name in report.missing] == ["vtm"] * 4 + ["answer"] * 4
    assert "fc=none" in str(report)
    assert not torch.equal(released.vtm[1].weight, source.vtm[1].weight)


def test_heads_of_other_shapes_are_reported_and_left(published, tmp_path):
    state = official_state(model(QA, answers=9), vtm="fc_vtm")
    assert "fc_vtm.1.weight" in state
    torch.save(state, tmp_path / "msvd.pt")
    fresh = model(QA, answers=5)
    report = load_checkpoint(fresh, tmp_path / "msvd.pt")
    assert set(report.reshaped) == {"answer.3.weight", "answer.3.bias"}
    assert report.reshaped["answer.3.bias"] == ((9,), (5,))
    assert "2 have another shape" in str(report)
    assert not report.complete


def test_original_fine_tuned_head(published, tmp_path):
    source = model(("answer",), seed=4)
    state = {to_official(name).replace("fc_oe.", "fc."): value for name, value in source.state_dict().items()}
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "oe.pt")
    fresh = model(("answer",))
    assert load_checkpoint(fresh, tmp_path / "oe.pt", fc="answer").complete
    assert_same(fresh, source, ("answer.", "video."))


def test_a_runs_own_checkpoint(tmp_path):
    source = model(QA, seed=3)
    save_file(
        {name: value.contiguous() for name, value in source.state_dict().items()}, tmp_path / "backbone.safetensors"
    )
    fresh = model(QA)
    assert load_checkpoint(fresh, tmp_path / "backbone.safetensors").complete
    assert_same(fresh, source, ("video.", "text.", "cross.", "vtm.", "mtm.", "mvm.", "answer."))


def test_unknown_keys_are_counted(published, tmp_path):
    file, _ = published
    state = torch.load(file, weights_only=True) | {"optimizer_of_someone": torch.zeros(1)}
    torch.save(state, tmp_path / "more.pt")
    report = load_checkpoint(model(), tmp_path / "more.pt")
    assert report.unexpected == ("optimizer_of_someone",)
    assert "1 keys are unknown (optimizer_of_someone)" in str(report)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (("bert.embeddings.x", "visual.layer.0", "cross.layer.0.y", "decoder.z"), "UniVL"),
        (("bert.embeddings.x", "cls.predictions.bias"), "BERT alone"),
        (("conv1.weight", "fc.weight"), "conv1.weight"),
    ],
)
def test_a_file_of_another_model_is_refused_with_what_it_looks_like(tmp_path, keys, named):
    torch.save({key: torch.zeros(2) for key in keys}, tmp_path / "other.pt")
    fresh = model()
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    with pytest.raises(UserError, match="not a VIOLET checkpoint") as caught:
        load_checkpoint(fresh, tmp_path / "other.pt")
    assert named in caught.value.message
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())


def test_another_size_is_refused(published):
    file, _ = published
    with pytest.raises(UserError, match="another size"):
        load_checkpoint(model(config=replace(TINY, feedforward=128)), file)


def test_broken_files_are_refused(published, tmp_path):
    file, _ = published
    (tmp_path / "cut.pt").write_bytes(file.read_bytes()[:2000])
    (tmp_path / "text.pt").write_text("not a checkpoint")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    for name in ("absent.pt", "cut.pt", "text.pt", "list.pt", "module.pt"):
        with pytest.raises(UserError) as caught:
            load_checkpoint(model(), tmp_path / name)
        assert name in caught.value.message
        assert caught.value.hint


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_video_swin_file(tmp_path, prefix):
    source = model(seed=5)
    state = {
        prefix + key.removeprefix("enc_img.swin."): value
        for key, value in official_state(source).items()
        if key.startswith("enc_img.swin.")
    }
    torch.save({"state_dict": state | {"cls_head.fc_cls.weight": torch.zeros(400, 128)}}, tmp_path / "swin.pt")
    fresh = model()
    assert load_video_swin(fresh, tmp_path / "swin.pt").complete
    assert_same(fresh, source, ("video.swin.",))
    assert not torch.equal(fresh.video.emb_pos, source.video.emb_pos)
    with pytest.raises(UserError, match="Video Swin alone"):
        load_checkpoint(fresh, tmp_path / "swin.pt")


def test_bert_from_transformers(tmp_path):
    from transformers import BertForPreTraining

    from meltr_violet.model.transformer import bert_config

    torch.manual_seed(0)
    bert = BertForPreTraining(bert_config(TINY)).eval()
    torch.save(bert.state_dict(), tmp_path / "pytorch_model.bin")
    fresh = model().eval()
    report = load_bert(fresh, tmp_path / "pytorch_model.bin")
    assert report.complete
    ids = torch.randint(104, TINY.vocabulary, (2, 9))
    with torch.no_grad():
        states = fresh.cross(fresh.embed_text(ids), torch.ones(2, 9, dtype=torch.bool))
        expected = bert(ids)
        torch.testing.assert_close(states, bert.bert(ids).last_hidden_state, atol=1e-5, rtol=0)
        torch.testing.assert_close(fresh.mtm(states), expected.prediction_logits, atol=1e-5, rtol=0)
    headless = {key: value for key, value in bert.state_dict().items() if not key.startswith("cls.predictions.decoder")}
    torch.save(headless, tmp_path / "headless.bin")
    again = model()
    load_bert(again, tmp_path / "headless.bin")
    assert torch.equal(again.mtm.decoder.weight, again.text.word_embeddings.weight)
    with pytest.raises(UserError, match="not BERT of this size"):
        load_bert(model(config=replace(TINY, layers=3)), tmp_path / "pytorch_model.bin")
