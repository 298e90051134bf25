"""`HostOffload` where something ends a step midway: nothing is lost, and nothing half done goes unnoticed."""

from threading import Thread

import offload_cases as c
import pytest
import torch

from fusedstep.torch.offload import copies, ring
from fusedstep.torch.offload import step as steps

SLOTS = {"slots": 3, "slot_elements": 4096}


class Interrupted:
    """A native step, after which a signal arrives."""

    def __init__(self, native, after):
        vars(self).update(native=native, after=after)

    def __getattr__(self, name):
        return getattr(self.native, name)

    def __setattr__(self, name, value):
        setattr(self.native, name, value)

    def step(self, *arguments, **named):
        stepped = self.native.step(*arguments, **named)
        vars(self)["after"] -= 1
        if not self.after:
            raise KeyboardInterrupt
        return stepped


def interrupt(optimizer, after):
    """Has a signal arrive behind a native step of the next step."""
    steps = optimizer._native
    before = steps._native
    steps._native = Interrupted(before, after)
    with pytest.raises(KeyboardInterrupt):
        c.take([optimizer], 1)
    steps._native = before


def test_an_interrupt_after_a_native_step_stops_further_steps():
    _, optimizer = c.both("adamw", torch.bfloat16, offloaded=SLOTS)
    interrupt(optimizer, 1)
    with pytest.raises(RuntimeError, match=r"midway \(KeyboardInterrupt: \)"):
        c.take([optimizer], 1)


def test_an_interrupt_before_the_state_is_kept_stops_further_steps(monkeypatch):
    _, optimizer = c.both("adamw", torch.bfloat16, offloaded=SLOTS)
    with monkeypatch.context() as patched:
        patched.setattr(steps.Hosted, "look", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            c.take([optimizer], 1)
    with pytest.raises(RuntimeError, match="midway"):
        c.take([optimizer], 1)


def test_an_interrupt_without_slots_leaves_a_whole_step():
    plain, optimizer = c.both("adamw", torch.bfloat16, offloaded={})
    c.take([plain], 1)
    interrupt(optimizer, 1)
    c.take([plain, optimizer], 2)
    c.assert_same(plain, optimizer)


def test_a_lost_copy_while_gradients_are_measured_loses_no_slot(monkeypatch):
    class Lost(copies.HostCopies):
        lost = True

        def ended(self, token):
            return not self.lost

    device = Lost()
    monkeypatch.setattr(steps, "copies_of", lambda _: device)
    offloaded = {"slots": 1, "slot_elements": 4096, "timeout": 0.01}
    plain, optimizer = c.both("adamw", torch.bfloat16, offloaded=offloaded, max_grad_norm=0.5)
    with pytest.raises(TimeoutError):
        c.take([optimizer], 1)
    device.lost = False
    c.take([plain, optimizer], 2)
    c.assert_same(plain, optimizer)


def test_a_ring_whose_memory_was_refused_is_made_anew(monkeypatch):
    plain, optimizer = c.both("adamw", torch.bfloat16, offloaded=SLOTS)
    c.take([plain, optimizer], 1)
    for either in (plain, optimizer):
        either.add_param_group({"params": c.parameters(torch.float32)})

    def refused(*arguments):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(ring, "Slot", refused)
        with pytest.raises(MemoryError):
            c.take([optimizer], 1)
    c.take([plain, optimizer], 1)
    c.assert_same(plain, optimizer)


def test_a_step_of_another_thread_is_refused(monkeypatch):
    """And so are the gradients of its backward pass: the step that is under way has its bits."""
    plain, optimizer = c.both("adamw", torch.bfloat16, offloaded=SLOTS)
    c.take([plain, optimizer], 1)
    errors = []

    def other():
        other_params = c.params_of(optimizer)
        for p in other_params:
            optimizer._native.arrived(optimizer.param_groups, "w", p)
        try:
            optimizer.step()
        except RuntimeError as error:
            errors.append(str(error))

    class Interleaved(copies.HostCopies):
        def give(self, into, source):
            thread = Thread(target=other)
            thread.start()
            thread.join(30)
            assert not thread.is_alive()
            return super().give(into, source)

    optimizer._native._copies.clear()
    monkeypatch.setattr(steps, "copies_of", lambda _: Interleaved())
    c.take([plain, optimizer], 2, 1)
    assert set(errors) == {"step: this optimizer is in the middle of a step"}
    c.assert_same(plain, optimizer)
