"""Sends a run to the Hugging Face Hub: weights, settings, results and card, and no other file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meltr.engine.checkpoints import Checkpoints
from meltr.engine.recovery import check
from meltr.errors import MeltrError, UserError
from meltr.files import encode, read_object
from meltr.folders.checkpoint_folder import CheckpointFolder
from meltr.folders.manifest import NAME as MANIFEST
from meltr.folders.run_folder import RunFolder
from meltr.report.card import CARD, model_card, without_places
from meltr.settings import dump_yaml


@dataclass(frozen=True)
class Upload:
    """What is sent.

    Args:
        files: Path in the repository -> the file on disk, or the bytes to send.
    """

    files: Mapping[str, Path | bytes]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(len(each) if isinstance(each, bytes) else each.stat().st_size for each in self.files.values())


def collect(run: Path, checkpoint: str = "best") -> Upload:
    """Return the files of a run that are sent; the folder that they make is one that ``meltr evaluate`` reads.

    Predictions, logs, the environment and optimiser states stay here: they may hold paths, names and examples. Absolute
    paths in the settings are cut down to their last part, and the folder of the data set is not named.

    Args:
        run: Folder of one finished run.
        checkpoint: ``best``, ``last``, or a name such as ``step-000500``.

    Raises:
        UserError: If the run has not finished, its checkpoint is damaged, or its weights are in shards.
    """
    folder = RunFolder(run)
    card = model_card(run)
    checkpoints = Checkpoints(folder.checkpoints)
    path = checkpoints.chosen(checkpoint)
    check(checkpoints, path, checkpoint)
    weights = CheckpointFolder(path)
    if not weights.backbone.is_file():
        raise UserError(
            f"{path} holds the weights in shards, which cannot be sent.",
            "Train with --set train.parallel=ddp, or resume with it and stop at once.",
        )
    place = f"checkpoints/{path.name}"
    files: dict[str, Path | bytes] = {
        CARD: card.encode(),
        "run.yaml": _settings(folder),
        "results.json": _json(without_places(read_object(folder.results))),
        f"{place}/backbone.safetensors": weights.backbone,
        f"{place}/combiner.safetensors": weights.combiner,
        "checkpoints/best": path.name.encode(),
        "checkpoints/last": path.name.encode(),
    }
    if folder.data.is_file():
        files["data.json"] = _json(without_places(read_object(folder.data)))
    if (path / MANIFEST).is_file():
        # It also lists training.pt, which stays here; the checks of weights look at the weights alone.
        files[f"{place}/{MANIFEST}"] = path / MANIFEST
    lost = [name for name, each in files.items() if isinstance(each, Path) and not each.is_file()]
    if lost:
        raise UserError(f"{run} lacks {', '.join(lost)}.", "It was copied incompletely.")
    return Upload(files)


def _settings(folder: RunFolder) -> bytes:
    """Return run.yaml without the places of this machine."""
    spec = folder.read_spec()
    options = {name: without_places(getattr(spec, name)) for name in ("options", "combiner_options")}
    plugins = tuple(Path(file.name) for file in spec.plugins)
    clean = spec.model_copy(update={"data_root": None, "plugins": plugins, "device": "auto", **options})
    return dump_yaml(clean).encode()


def _json(content: object) -> bytes:
    return (json.dumps(encode(content), indent=2, ensure_ascii=False) + "\n").encode()


def push(upload: Upload, repository: str, *, private: bool, token: str | None = None) -> str:
    """Create the repository if it does not exist, and send the files in one commit; return its address.

    Args:
        upload: What to send.
        repository: Its name, ``user/name``.
        private: Make a new repository private.
        token: Token of the Hub; None: that of the environment or of ``hf auth login``.

    Raises:
        UserError: If huggingface_hub or a token is missing, or the name is not valid.
        MeltrError: If the Hub refuses or cannot be reached.
    """
    hub = _hub()
    if token is None:
        token = hub.get_token()
    if not token:
        raise UserError(
            "There is no token for the Hub.",
            "Log in with `hf auth login`, or set HF_TOKEN; --dry-run lists the files without one.",
        )
    try:
        hub.utils.validate_repo_id(repository)
    except ValueError as error:
        raise UserError(f"{repository!r} is not the name of a repository: {error}", "For example: --repo user/name")
    api = hub.HfApi(token=token)
    operations = [
        hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=each if isinstance(each, bytes) else str(each))
        for name, each in upload.files.items()
    ]
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.create_commit(repository, operations, commit_message="A run of meltr")
    except (hub.errors.HfHubHTTPError, OSError) as error:
        raise MeltrError(
            f"The Hub did not take {repository}: {str(error).splitlines()[0]}",
            "Check the name, the rights of the token and the network, then run the same command again.",
        ) from error
    return str(done.repo_url)


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            "Sending a run needs huggingface_hub, which is not installed.",
            "Install it with: pip install 'meltr-core[hub]'",
        ) from None
    return huggingface_hub
