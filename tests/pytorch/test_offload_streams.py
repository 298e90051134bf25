"""What copies of an accelerator ask of PyTorch, of stand-ins: nothing of it has run on one yet."""

from unittest.mock import Mock

import torch

from fusedstep.torch.offload.copies import StreamCopies


class Stream:
    """Stands in for a stream of an accelerator, and notes what is asked of it."""

    def __init__(self, calls, name):
        self.calls, self.name = calls, name

    def wait_stream(self, other):
        self.calls.append((self.name, "waits for", other))

    def __enter__(self):
        self.calls.append((self.name, "begins"))

    def __exit__(self, *_):
        self.calls.append((self.name, "ends"))

    def record_event(self):
        self.calls.append((self.name, "records"))
        return Mock(query=Mock(side_effect=[False, True]))


class Numbers:
    """Stands in for a tensor."""

    def __init__(self, calls, name):
        self.calls, self.name = calls, name

    def copy_(self, source, non_blocking):
        assert non_blocking
        self.calls.append((self.name, "copies", source.name))

    def record_stream(self, stream):
        self.calls.append((self.name, "is used on", stream.name))


def test_streams(monkeypatch):
    """What copies of an accelerator ask of PyTorch, in which order: of stand-ins, for here is no accelerator."""
    calls = []
    streams = [Stream(calls, "bringing"), Stream(calls, "giving")]
    made = iter(streams)
    computing = Stream(calls, "computing")
    assert all(hasattr(torch.Stream, name) for name in ("wait_stream", "record_event", "__enter__"))
    monkeypatch.setattr(torch, "Stream", lambda device: next(made))
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda device: computing)
    copies = StreamCopies(torch.device("meta"))
    into, source = Numbers(calls, "into"), Numbers(calls, "source")
    for begin, stream, freed in ((copies.bring, streams[0], "source"), (copies.give, streams[1], "into")):
        calls.clear()
        token = begin(into, source)
        assert calls == [
            (stream.name, "waits for", computing),
            (stream.name, "begins"),
            ("into", "copies", "source"),
            (stream.name, "ends"),
            (freed, "is used on", stream.name),
            (stream.name, "records"),
        ]
        assert not copies.ended(token)
        assert copies.ended(token)
    calls.clear()
    copies.join()
    assert calls == [("computing", "waits for", streams[1])]
