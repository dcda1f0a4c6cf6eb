"""What was made once and is kept is there after an event, for which streams wait."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(slots=True)
class Ready:
    """The event; None once it has passed, and on the CPU."""

    event: torch.cuda.Event | None

    @staticmethod
    def on(device: torch.device) -> Ready:
        """After all that the current stream has been given."""
        if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            return Ready(None)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))
        return Ready(event)

    def wait(self, device: torch.device) -> None:
        """Let the current stream wait; one that is captured does not ask, as the device is waited for before."""
        event = self.event
        if event is None or torch.cuda.is_current_stream_capturing():
            return
        if event.query():
            self.event = None
        else:
            event.wait(torch.cuda.current_stream(device))
