"""Published weights: what becomes of every key, what is adapted, what is refused; and the way back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from meltr import LossTransformer, UserError
from meltr_allinone.model.all_in_one import AllInOne
from meltr_allinone.model.config import BASE, SMALL, TI, ModelConfig
from meltr_allinone.weights.official import official_state, renamed
from meltr_allinone.weights.pretrained import load_pretrained, read_combiner, save_official

CONFIG = ModelConfig(width=32, depth=2, heads=2, image_size=48, text_length=8, vocabulary=130, shared=12)
PRETRAINING = ("mlm", "itm")
RETRIEVAL = ("mlm", "itm", "rank", "contrastive")
TRUNK = ("text_embeddings.", "token_type_embeddings.", "transformer.", "pooler.")


def model(heads: tuple[str, ...] = PRETRAINING, *, seed: int = 1, answers: int = 5, **sizes: object) -> AllInOne:
    torch.manual_seed(seed)
    made = AllInOne(replace(CONFIG, **sizes), heads=heads, answers=answers)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made


def copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


def save(state: dict[str, Tensor], file: Path) -> Path:
    torch.save({"state_dict": state}, file)
    return file


def assert_same(one: AllInOne, other: AllInOne, prefixes: tuple[str, ...], *, but: tuple[str, ...] = ()) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    names = [name for name in mine if name.startswith(prefixes) and name not in but]
    assert names
    assert all(torch.equal(mine[name], theirs[name]) for name in names)


def assert_refused(fresh: AllInOne, file: Path, *parts: str) -> None:
    """Refused with all of `parts` in the message or the hint, and the model is as it was."""
    before = copy(fresh.state_dict())
    with pytest.raises(UserError) as caught:
        load_pretrained(fresh, file)
    for part in (*parts, file.name):
        assert part in caught.value.message + str(caught.value.hint)
    assert caught.value.hint
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())


Write = Callable[..., Path]


@pytest.fixture
def lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Return a writer of checkpoints as Lightning 1.1.4 has them, whose module is gone when they are read."""
    names = ["pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint"]
    modules = {name: ModuleType(name) for name in names}
    key = type("ModelCheckpoint", (), {"__module__": names[-1]})
    modules[names[-1]].ModelCheckpoint = key

    def write(state: dict[str, Tensor], **more: object) -> Path:
        content = {
            "epoch": 3,
            "global_step": 100,
            "pytorch-lightning_version": "1.1.4",
            "callbacks": {key: {"best_model_score": torch.tensor(1.5), "best_model_path": "x.ckpt"}},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}],
            "lr_schedulers": [{"last_epoch": 100}],
            "native_amp_scaling_state": {"scale": 2.0},
            "state_dict": state,
            "hparams_name": "config",
            "hyper_parameters": {"config": {"num_frames": 3, "loss_names": {"itm": 1, "mlm": 1}}},
            **more,
        }
        file = tmp_path / "all-in-one-plus-224.ckpt"
        with monkeypatch.context() as patch:
            for name, module in modules.items():
                patch.setitem(sys.modules, name, module)
            torch.save(content, file)
        return file

    return write


def test_a_checkpoint_of_lightning_without_lightning(lightning):
    source = model(seed=0)
    file = lightning(official_state(source.state_dict()))
    with pytest.raises(Exception, match="ModelCheckpoint"):
        torch.load(file, weights_only=True)
    fresh = model()
    report = load_pretrained(fresh, file)
    assert report.complete
    assert set(report.loaded) == set(fresh.state_dict())
    assert (report.unexpected, report.adapted) == ((), {})
    assert report.ignored == {"text_embeddings.position_ids": "a constant index"}
    assert_same(fresh, source, ("",))
    assert "pytorch_lightning" not in sys.modules


def test_other_classes_in_a_checkpoint_are_refused_by_name(lightning):
    file = lightning({}, extra=Path)
    assert_refused(model(), file, "pathlib.Path", "Nothing of it was run")


def test_names_of_co_training(tmp_path):
    """``vtm_score`` is the matching head, ``student`` the transformer, ``teacher`` nobody's, ``module`` the wrapper."""
    source = model(seed=0)
    state = {}
    for name, value in official_state(source.state_dict()).items():
        official = name.replace("transformer.", "student.", 1).replace("itm_score.", "vtm_score.", 1)
        state[f"module.{official}"] = value
        if name.startswith("transformer."):
            state["module." + name.replace("transformer.", "teacher.", 1)] = value + 1
    assert any("student.blocks" in key for key in state)
    assert any("vtm_score" in key for key in state)
    fresh = model()
    report = load_pretrained(fresh, save(state, tmp_path / "student.ckpt"))
    assert report.complete
    assert_same(fresh, source, ("",))
    assert sum(why == "the teacher of a co-training" for why in report.ignored.values()) == sum(
        "teacher." in key for key in state
    )


def test_of_two_names_of_a_head_its_own_counts(tmp_path):
    source = model(seed=0)
    state = official_state(source.state_dict())
    state |= {"vtm_score.fc.weight": torch.zeros(2, 32), "vtm_score.fc.bias": torch.zeros(2)}
    fresh = model()
    report = load_pretrained(fresh, save(state, tmp_path / "both.ckpt"))
    assert_same(fresh, source, ("itm_score.",))
    assert report.ignored["vtm_score.fc.bias"] == "the file has itm_score.fc.bias too"


def test_a_retrieval_model_says_what_is_new_and_ranks_like_matching(tmp_path):
    source = model(seed=0)
    fresh = model(RETRIEVAL)
    before = copy(fresh.state_dict())
    report = load_pretrained(fresh, save(official_state(source.state_dict()), tmp_path / "pre.ckpt"))
    projections = ("txt_proj.weight", "txt_proj.bias", "vid_proj.weight", "vid_proj.bias")
    assert report.missing == projections
    assert all(torch.equal(fresh.state_dict()[name], before[name]) for name in projections)
    assert torch.equal(fresh.rank_output.weight[0], source.itm_score.fc.weight[1])
    assert torch.equal(fresh.rank_output.bias[0], source.itm_score.fc.bias[1])
    assert set(report.adapted) == {"rank_output.weight", "rank_output.bias"}
    assert "rank_output.weight: starts as itm_score" in str(report)
    assert "4 stay as initialised (txt_proj, vid_proj)" in str(report)
    alone = model(("rank",))
    report = load_pretrained(alone, tmp_path / "pre.ckpt")
    assert report.complete
    assert torch.equal(alone.rank_output.weight[0], source.itm_score.fc.weight[1])
    assert report.ignored["itm_score.fc.weight"] == "the model has no such part"


def test_a_score_of_ranking_in_the_file_counts(tmp_path):
    source = model(RETRIEVAL, seed=0)
    fresh = model(RETRIEVAL)
    report = load_pretrained(fresh, save(official_state(source.state_dict()), tmp_path / "fine.ckpt"))
    assert report.complete
    assert not report.adapted
    assert_same(fresh, source, ("",))
    assert not torch.equal(fresh.rank_output.weight[0], source.itm_score.fc.weight[1])


UNUSED = {
    "mpp_score.decoder.weight": "masked patches",
    "vcop_classifier.fc7.weight": "order of frames",
    "mc_vqa_classifier.1.weight": "multiple choice",
    "nlvr2_classifier.0.weight": "pairs of images",
    "rank_output_2.weight": "second score",
    "aux_model.fc1.weight": "loss transformer",
}


def test_other_heads_are_named_and_strangers_are_told(tmp_path):
    state = official_state(model(seed=0).state_dict()) | dict.fromkeys([*UNUSED, "who.knows"], torch.zeros(1))
    report = load_pretrained(model(), save(state, tmp_path / "more.ckpt"))
    assert report.unexpected == ("who.knows",)
    for key, why in UNUSED.items():
        assert why in report.ignored[key]
        assert report.ignored[key] in str(report)
    accounted = {*report.loaded, *report.ignored, *report.unexpected}
    assert accounted == set(state)


def test_answers(tmp_path):
    source = model(("answer",), seed=0, answers=9)
    file = save(official_state(source.state_dict()), tmp_path / "msvd.ckpt")
    same = model(("answer",), answers=9)
    assert load_pretrained(same, file).complete
    assert_same(same, source, ("vqa_classifier.", "pooler."))
    other = model(("answer",), answers=5)
    before = copy(other.state_dict())
    report = load_pretrained(other, file)
    assert report.reshaped["vqa_classifier.4.bias"] == ((9,), (5,))
    assert torch.equal(other.state_dict()["vqa_classifier.4.weight"], before["vqa_classifier.4.weight"])
    assert_same(other, source, ("vqa_classifier.1.", "vqa_classifier.2."))


def test_the_head_of_vqa_v2_is_another(tmp_path):
    state = official_state(model(seed=0).state_dict())
    state |= {f"vqa_classifier.{number}.weight": torch.zeros(64) for number in (0, 1, 3)}
    report = load_pretrained(model(("answer",)), save(state, tmp_path / "vqa.ckpt"))
    assert not report.reshaped
    assert {report.ignored[f"vqa_classifier.{number}.weight"] for number in (0, 1, 3)} == {"a head for VQA v2"}


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_another_number_of_frames(tmp_path, frames):
    source = model(seed=0)
    fresh = model(frames=frames)
    report = load_pretrained(fresh, save(official_state(source.state_dict()), tmp_path / "three.ckpt"))
    times, own = fresh.transformer.temporal_embed, source.transformer.temporal_embed
    shared = min(3, frames)
    assert torch.equal(times[:, :shared], own[:, :shared])
    assert not times[:, 3:].any()
    assert report.complete
    assert list(report.adapted) == ["transformer.temporal_embed"]
    assert str(frames - 3 if frames > 3 else frames) in report.adapted["transformer.temporal_embed"]
    assert_same(fresh, source, TRUNK, but=("transformer.temporal_embed",))


def test_a_third_type_of_pairs_of_images_is_left_out(tmp_path):
    source = model(seed=0)
    state = official_state(source.state_dict())
    state["token_type_embeddings.weight"] = torch.cat([state["token_type_embeddings.weight"], torch.zeros(1, 32)])
    fresh = model()
    report = load_pretrained(fresh, save(state, tmp_path / "nlvr2.ckpt"))
    assert_same(fresh, source, ("",))
    assert report.adapted == {"token_type_embeddings.weight": "the first 2 of 3 rows"}


def test_shorter_texts_keep_the_first_positions_and_longer_ones_are_refused(tmp_path):
    source = model(seed=0)
    file = save(official_state(source.state_dict()), tmp_path / "eight.ckpt")
    fresh = model(text_length=5)
    report = load_pretrained(fresh, file)
    name = "text_embeddings.position_embeddings.weight"
    assert torch.equal(fresh.state_dict()[name], source.state_dict()[name][:5])
    assert report.adapted == {name: "the first 5 of 8 rows"}
    assert_refused(model(text_length=10), file, "8 positions", "text_length=10", "--set text_length=8")


def test_frames_of_another_size_are_refused_with_both(tmp_path):
    file = save(official_state(model(seed=0).state_dict()), tmp_path / "small.ckpt")
    assert_refused(model(image_size=64), file, "48 x 48 pixels (9 patches", "64 x 64 (16", "--set image_size=48")
    assert_refused(model(image_size=96, patch=32), file, "9 patches of 16", "9 of 32", "model's patches")


def test_another_vocabulary_is_refused(tmp_path):
    file = save(official_state(model(seed=0).state_dict()), tmp_path / "small.ckpt")
    assert_refused(model(vocabulary=140), file, "130 tokens", "140", "vocabulary=FILE")


@pytest.mark.parametrize(("name", "config"), {"base": BASE, "small": SMALL, "ti": TI}.items())
def test_another_size_is_refused_with_its_name(tmp_path, name, config):
    """The published sizes, without their numbers: one is stored and repeated."""
    with torch.device("meta"):
        state = AllInOne(config).state_dict()
    hollow = {key: torch.zeros(()).expand(value.shape) for key, value in state.items()}
    file = save(hollow, tmp_path / "published.ckpt")
    assert_refused(model(), file, "another size", f"size {name}", f"--set size={name}", "32 wide with 2 blocks")


def test_another_width_of_the_mlps_is_refused(tmp_path):
    file = save(official_state(model(seed=0).state_dict()), tmp_path / "four.ckpt")
    assert_refused(model(mlp_ratio=2.0), file, "another size", "mlp.fc1")


def test_an_incomplete_trunk_is_refused(tmp_path):
    state = official_state(model(seed=0).state_dict())
    del state["transformer.blocks.0.norm1.bias"]
    assert_refused(model(), save(state, tmp_path / "part.ckpt"), "lacks 1 tensors", "transformer.blocks.0.norm1.bias")
    texts = {name: value for name, value in state.items() if name.startswith("text_embeddings.")}
    assert_refused(model(), save(texts, tmp_path / "texts.ckpt"), "not an All-in-one checkpoint")


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (("enc_img.swin.x", "trsfr.layer.0"), "VIOLET"),
        (("bert.embeddings.x", "visual.layer.0", "cross.layer.0.y"), "UniVL"),
        (("bert.embeddings.x", "cls.predictions.bias"), "BERT alone"),
        (("aux_model.fc1.weight",), "a loss transformer"),
        (("conv1.weight", "fc.weight"), "conv1.weight"),
    ],
)
def test_files_of_other_models_are_refused_with_what_they_look_like(tmp_path, keys, named):
    assert_refused(model(), save({key: torch.zeros(2) for key in keys}, tmp_path / "other.pt"), named)


def test_broken_files_are_refused(tmp_path):
    whole = save(official_state(model().state_dict()), tmp_path / "whole.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[:2000])
    (tmp_path / "text.ckpt").write_text("<html>")
    torch.save([1, 2], tmp_path / "list.ckpt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.ckpt")
    for name in ("absent.ckpt", "cut.ckpt", "text.ckpt", "list.ckpt", "module.ckpt"):
        assert_refused(model(), tmp_path / name)


def test_a_runs_own_checkpoint(tmp_path):
    source = model(RETRIEVAL, seed=3)
    save_file(source.state_dict(), tmp_path / "backbone.safetensors")
    fresh = model(RETRIEVAL)
    assert load_pretrained(fresh, tmp_path / "backbone.safetensors").complete
    assert_same(fresh, source, ("",))


# The way back


@pytest.mark.parametrize("distilled", [False, True])
def test_a_model_goes_back_and_comes_again(tmp_path, distilled):
    source = model((*RETRIEVAL, "answer"), seed=0, distilled=distilled)
    combiner = LossTransformer(2, width=16, feedforward=16, scale_hidden=8, start="random")
    file = tmp_path / "folder" / "back.ckpt"
    save_official(source, file, combiner=combiner.state_dict())
    written = torch.load(file, weights_only=True)["state_dict"]
    assert torch.equal(written["text_embeddings.position_ids"], torch.arange(8)[None])
    fresh = model((*RETRIEVAL, "answer"), distilled=distilled)
    assert load_pretrained(fresh, file).complete
    assert_same(fresh, source, ("",))
    again = LossTransformer.from_state_dict(read_combiner(file))
    losses = torch.tensor([0.3, 2.0])
    assert torch.equal(again.eval()(losses), combiner.eval()(losses))
    assert [entry.name for entry in file.parent.iterdir()] == ["back.ckpt"]


def test_a_file_without_a_loss_transformer(tmp_path):
    save_official(model(), tmp_path / "plain.ckpt")
    with pytest.raises(UserError, match="holds no loss transformer"):
        read_combiner(tmp_path / "plain.ckpt")


def official_base_keys() -> dict[str, tuple[int, ...]]:
    """The 167 tensors of the base model with the heads of pre-training, and the index, as in the public code."""
    d, v, length = 768, 30522, 40
    keys: dict[str, tuple[int, ...]] = {
        "text_embeddings.position_ids": (1, length),
        "text_embeddings.word_embeddings.weight": (v, d),
        "text_embeddings.position_embeddings.weight": (length, d),
        "text_embeddings.token_type_embeddings.weight": (2, d),
        "text_embeddings.LayerNorm.weight": (d,),
        "text_embeddings.LayerNorm.bias": (d,),
        "token_type_embeddings.weight": (2, d),
        "transformer.cls_token": (1, 1, d),
        "transformer.pos_embed": (1, 197, d),
        "transformer.temporal_embed": (1, 3, d),
        "transformer.patch_embed.proj.weight": (d, 3, 16, 16),
        "transformer.patch_embed.proj.bias": (d,),
        "transformer.norm.weight": (d,),
        "transformer.norm.bias": (d,),
        "pooler.dense.weight": (d, d),
        "pooler.dense.bias": (d,),
        "mlm_score.bias": (v,),
        "mlm_score.transform.dense.weight": (d, d),
        "mlm_score.transform.dense.bias": (d,),
        "mlm_score.transform.LayerNorm.weight": (d,),
        "mlm_score.transform.LayerNorm.bias": (d,),
        "mlm_score.decoder.weight": (v, d),
        "itm_score.fc.weight": (2, d),
        "itm_score.fc.bias": (2,),
    }
    linear = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (4 * d, d), "mlp.fc2": (d, 4 * d)}
    for block in range(12):
        place = f"transformer.blocks.{block}."
        for name, shape in linear.items():
            keys |= {f"{place}{name}.weight": shape, f"{place}{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            keys |= {f"{place}{name}.weight": (d,), f"{place}{name}.bias": (d,)}
    return keys


def test_every_key_of_the_published_base_model():
    expected = official_base_keys()
    assert len(expected) == 167 + 1
    with torch.device("meta"):
        written = official_state(AllInOne(BASE, heads=PRETRAINING).state_dict())
    assert {name: tuple(value.shape) for name, value in written.items()} == expected
    assert sum(value.numel() for value in written.values() if value.is_floating_point()) == 133_932_860
    ours, left_out, unknown = renamed(written)
    assert (len(ours), list(left_out), unknown) == (167, ["text_embeddings.position_ids"], [])


# A ViT for the frames alone


@pytest.mark.parametrize("distilled", [False, True])
def test_a_vit_of_timm(tmp_path, distilled):
    """Its blocks, tables and norm; the features of a frame alone are timm's."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    module = timm.models.deit.VisionTransformerDistilled if distilled else timm.models.VisionTransformer
    vit = module(img_size=48, patch_size=16, embed_dim=32, depth=2, num_heads=2, num_classes=7).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.normal_(std=0.2)
    torch.save({"model": vit.state_dict()}, tmp_path / "vit.pth")
    fresh = model(distilled=distilled, dropout=0.0, drop_path=0.0).eval()
    before = copy(fresh.state_dict())
    report = load_pretrained(fresh, tmp_path / "vit.pth")
    assert report.unexpected == ()
    assert {key.partition(".")[0] for key in report.ignored} == ({"head", "head_dist"} if distilled else {"head"})
    assert [name for name in report.missing if name.startswith("transformer.")] == ["transformer.temporal_embed"]
    assert {name for name in before if not torch.equal(before[name], fresh.state_dict()[name])} == set(report.loaded)
    assert "stay as initialised (text_embeddings" in str(report)
    pictures = torch.rand(2, 1, 3, 48, 48)
    with torch.no_grad():
        fresh.token_type_embeddings.weight.zero_()
        fresh.transformer.temporal_embed.zero_()
        torch.testing.assert_close(
            fresh.encode_video(pictures), vit.forward_features(pictures[:, 0]), atol=1e-5, rtol=1e-5
        )


def test_a_vit_of_another_size_is_refused(tmp_path):
    timm = pytest.importorskip("timm")
    for name, size in {"wide": {"embed_dim": 64}, "large": {"embed_dim": 32, "img_size": 64}}.items():
        vit = timm.models.VisionTransformer(**{"img_size": 48, "depth": 2, "num_heads": 2} | size)
        torch.save(vit.state_dict(), tmp_path / f"{name}.pth")
    assert_refused(model(), tmp_path / "wide.pth", "another size", "64 wide")
    assert_refused(model(), tmp_path / "large.pth", "64 x 64 pixels", "48 x 48")
