"""What `evaluate` and `predict` return."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from meltr.context import FILE_KEYS, PredictRequest
from meltr.engine.predicting import load_run
from meltr.errors import UserError
from meltr.files import encode
from meltr.plugins import Registry
from meltr.specs import RunSpec
from meltr.testing.case import Case, TrainedFolder


class Answers(Case):
    """The schema of evaluations and predictions."""

    def test_an_evaluation_has_the_metrics_of_its_task(self, trained: TrainedFolder, registry: Registry) -> None:
        """Plain finite numbers, examples that were counted, and rows that JSON can represent."""
        task = registry.task(trained.results["task"])
        found = trained.watch.evaluations
        assert "validation" in found or "test" in found, "no split was evaluated: `build_data` returns neither"
        for split, evaluation in found.items():
            assert evaluation.count > 0, split
            missing = [name for name in task.metrics if name not in {*evaluation.metrics, *evaluation.skipped}]
            assert not missing, f"{split}: the task {task.name!r} declares {missing}, too"
            primary = evaluation.metrics[task.metrics[0]]
            assert math.isfinite(primary), f"{split}: {task.metrics[0]} is {primary}"
            _as_json(evaluation.summary())
            for row in evaluation.predictions:
                assert isinstance(_as_json(row), dict), f"{split}: a row is {type(row).__name__}"
            for name, metrics in evaluation.baselines.items():
                assert name.strip()
                assert all(isinstance(value, (int, float)) for value in metrics.values()), f"baseline {name!r}"

    def test_predictions_need_no_data_set(self, trained: TrainedFolder, spec: RunSpec, registry: Registry) -> None:
        """From the folder of the run alone: at most `top` rows, the same twice, files by their paths."""
        run = self._loaded(trained, registry)
        requests = self.requests(spec)
        assert requests, "the backbone has the hook predict: override requests() with what it can answer"
        for request in requests:
            answer = run.predict(request)
            rows = [_as_json(row) for row in answer.rows]
            assert 1 <= len(rows) <= request.top * max(1, len(request.media), len(request.text)), (
                f"{len(rows)} rows for {request}"
            )
            again = [_as_json(row) for row in run.predict(request).rows]
            assert rows == again, f"two answers to {request}"
            assert answer.what.strip(), "Prediction.what must describe the rows"
            if request.media:
                assert {_file_of(row) for row in rows} <= {Path(file) for file in request.media}
            if request.choices:
                said = {str(value) for row in rows for value in row.values()}
                assert said & set(request.choices), f"no row has one of the choices {request.choices}"

    def test_a_request_without_input_is_refused(self, trained: TrainedFolder, registry: Registry) -> None:
        """With a `meltr.UserError` that tells what is missing."""
        run = self._loaded(trained, registry)
        with pytest.raises(UserError):
            run.predict(PredictRequest())

    def _loaded(self, trained: TrainedFolder, registry: Registry) -> Any:
        try:
            return load_run(trained.path, registry=registry)
        except UserError as error:
            if "optional hook predict" in error.message:
                pytest.skip("the backbone does not have the optional hook predict")
            raise


def _as_json(value: Any) -> Any:
    """Return a value as a reader of the file finds it."""
    return json.loads(json.dumps(encode(value)))


def _file_of(row: dict[str, Any]) -> Path:
    """Return the file that a row is about."""
    named = [row[key] for key in FILE_KEYS if key in row]
    assert named, f"a row about a file must have its path under one of {FILE_KEYS}: {row}"
    return Path(named[0])
