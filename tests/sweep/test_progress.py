"""Where a sweep's time goes."""

import pytest

from mti_lightning.sweep import progress
from mti_lightning.sweep.progress import Pace


def test_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    pace = Pace()
    for on, seconds in (("", 5.0), ("network", 2.0), ("writing", 1.0), ("network", 2.0)):
        if on:
            with pace.spending(on):
                clock[0] += seconds
        else:
            clock[0] += seconds
    pace.pictures = 1200
    assert pace.seconds == {"reading": 5, "network": 4, "writing": 1}
    assert pace.limit == "50% reading"
    assert str(pace) == (
        "1,200 pictures in 10.0 s, 120.0 a second: reading 50%, network 40%, writing 10%"
    )
