"""Settings that contradict each other."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from meltr_allinone.options import AllInOneOptions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 100}, "image_size=100 is not a multiple of 16"),
        ({"frames": 4, "stored_frames": 3}, "stored_frames=3 is less than frames=4"),
        ({"retrieval_views": 3}, "retrieval_views=3 are the same clip with eval_sampling=uniform"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValidationError, match=message):
        AllInOneOptions(**options)
