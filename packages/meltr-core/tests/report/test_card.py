"""The model card of a run, and what is sent to the Hub: the files, and nothing that names this machine."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from command_line import assert_stopped, call, command_line
from meltr.engine.run import execute
from meltr.plugins import discover
from meltr.report.card import without_places
from meltr.settings import resolve
from places import TOY
from run_folders import make_run

hub = pytest.importorskip("huggingface_hub")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A short run of the toy backbone, which remembers places of this machine."""
    folder, registry = tmp_path_factory.mktemp("card") / "run", discover([TOY])
    flags = {"device": "cpu", "train.max_steps": 2, "combiner_options.width": 16, "combiner_options.heads": 2}
    spec = resolve(registry, backbone="toy", task="classification", dataset="rings", flags=flags, plugins=[TOY])
    execute(spec, run_dir=folder, registry=registry)
    (folder / "environment.json").write_text(
        json.dumps({"command": ["meltr", "run", "--plugin", str(TOY), "--data-root=/home/someone/data", "--seed", "0"]})
    )
    return folder


def test_the_hub_reads_the_card(run):
    result = call("card", run)
    assert result.exit_code == 0, result.output
    card = hub.ModelCard(result.stdout)
    results = json.loads((run / "results.json").read_text())
    found = {each.metric_type: each.metric_value for each in card.data.eval_results}
    assert found == pytest.approx(results["test"]["metrics"])
    (dataset,) = {(each.dataset_type, each.dataset_split) for each in card.data.eval_results}
    assert dataset == ("rings", "test")
    assert card.data.library_name == "meltr"
    assert "toy" in card.data.tags
    for words in ("ce, denoise, norm", "One seed (0)", "meltr evaluate FOLDER", "256 examples"):
        assert words in card.text
    assert "/home" not in result.stdout
    assert str(TOY.parent) not in result.stdout


def test_names_in_a_card_mean_nothing_to_markdown_or_yaml(tmp_path):
    evil = "a: b | <script>\n# x *y*"
    run = make_run(tmp_path / "evil", dataset=evil, losses=[evil, "aux"])
    assert call("card", run, "-o", tmp_path / "README.md").exit_code == 0
    card = hub.ModelCard((tmp_path / "README.md").read_text())
    assert card.data.eval_results[0].dataset_type == evil
    assert "<script>" not in card.text
    assert "\n# x" not in card.text


def test_a_run_that_has_not_finished_has_no_card(tmp_path):
    run = make_run(tmp_path / "half", finished=False)
    assert_stopped(call("card", run), "results.json", f"meltr run --resume {run}")
    assert_stopped(call("push", run, "--to", "hub", "--dry-run"), "results.json")


SENT = {"README.md", "run.yaml", "results.json", "data.json", "checkpoints/best", "checkpoints/last"}


class Hub:
    """Stands in for `huggingface_hub.HfApi`: keeps what is sent."""

    sent: dict[str, bytes] = {}
    made: dict[str, Any] = {}

    def __init__(self, *, token: str) -> None:
        self.token = token

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
        Hub.made = {"name": name, "private": private, "exist_ok": exist_ok, "token": self.token}

    def create_commit(self, name: str, operations: list[Any], *, commit_message: str) -> Any:
        if name == "user/full":
            raise hub.errors.HfHubHTTPError("403 Forbidden", response=SimpleNamespace(headers={}, request=None))
        assert name == Hub.made["name"]
        for each in operations:
            with each.as_file() as stream:
                Hub.sent[each.path_in_repo] = stream.read()
        return SimpleNamespace(repo_url=f"https://hub.test/{name}")


@pytest.fixture
def stand_in(monkeypatch):
    Hub.sent, Hub.made = {}, {}
    monkeypatch.setattr(hub, "HfApi", Hub)
    monkeypatch.setattr(hub, "get_token", lambda: "secret")
    return Hub


def test_the_stated_files_are_sent_and_no_other(run, stand_in, tmp_path):
    listed = json.loads(call("push", run, "--to", "hub", "--dry-run", "--json").stdout)
    assert stand_in.made == {}
    result = call("push", run, "--to", "hub", "--repo", "user/toy")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == "https://hub.test/user/toy"
    assert stand_in.made == {"name": "user/toy", "private": True, "exist_ok": True, "token": "secret"}
    assert {name: len(content) for name, content in stand_in.sent.items()} == listed["files"]
    names = {name for name in stand_in.sent if not name.startswith("checkpoints/step-")}
    assert names == SENT
    parts = {name.split("/")[-1] for name in stand_in.sent if name.startswith("checkpoints/step-")}
    assert parts == {"backbone.safetensors", "combiner.safetensors", "manifest.json"}
    for name, content in stand_in.sent.items():
        if not name.endswith(".safetensors"):
            assert str(TOY.parent).encode() not in content, name
    assert yaml.safe_load(stand_in.sent["run.yaml"])["plugins"] == [TOY.name]
    for name, content in stand_in.sent.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    again = command_line(TOY)("evaluate", tmp_path, "--plugin", TOY, "--json")
    assert again.exit_code == 0, again.output
    results = json.loads((run / "results.json").read_text())
    assert json.loads(again.stdout)["metrics"] == pytest.approx(results["test"]["metrics"])


def test_what_cannot_be_sent_is_an_error(run, stand_in, monkeypatch):
    assert_stopped(call("push", run, "--to", "moon", "--dry-run"), "moon", "hub")
    assert_stopped(call("push", run, "--to", "hub"), "--repo user/name")
    assert_stopped(call("push", run, "--to", "hub", "--repo", "a/b/c"), "a/b/c", "user/name")
    refused = call("push", run, "--to", "hub", "--repo", "user/full")
    assert refused.exit_code == 1
    assert "403 Forbidden" in refused.stderr
    monkeypatch.setattr(hub, "get_token", lambda: None)
    assert_stopped(call("push", run, "--to", "hub", "--repo", "user/toy"), "no token", "hf auth login")
    assert stand_in.sent == {}


def test_only_absolute_paths_are_cut_down():
    given = {"a": ["/home/me/w.bin", "x/y", 3, None], "b": "--data-root=/home/me/d", "c": "C:\\Users\\me\\z"}
    assert without_places(given) == {"a": ["w.bin", "x/y", 3, None], "b": "--data-root=d", "c": "z"}
