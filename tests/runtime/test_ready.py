"""What has been kept on a GPU, and streams that use it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from spdsl.runtime.ready import Ready


class Event:
    """An event that passes after having been asked for some times."""

    def __init__(self, times: int) -> None:
        self.times, self.waited = times, 0

    def query(self) -> bool:
        self.times -= 1
        return self.times < 0

    def wait(self, stream: object) -> None:
        self.waited += 1


def test_streams_wait_until_what_is_kept_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    event: Any = Event(2)
    ready, device = Ready(event), torch.device("cuda", 0)
    for _ in range(5):
        ready.wait(device)
    assert event.waited == 2
    assert ready.event is None
    assert Ready.on(torch.device("cpu")).event is None
