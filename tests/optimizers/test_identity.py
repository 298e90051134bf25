"""Whose memory is trained: it may move, be freed, be replaced or copied, and nobody goes on with the old one."""

import copy
import ctypes
import io
import mmap
import pickle
from multiprocessing import shared_memory

import numpy as np
import pytest

import fusedstep as fs
from fusedstep.optimizers import REGISTRY
from helpers import assert_same_bits, gradient_for, ones, reshaped_for

torch = pytest.importorskip("torch")
F = np.float32


def adam_of(values, grads, **hypers):
    """What torch's Adam makes of values, step by step."""
    param = torch.nn.Parameter(torch.tensor(values))
    optimizer = torch.optim.Adam([param], **hypers)
    for grad in grads:
        param.grad = torch.tensor(grad)
        optimizer.step()
    return param.detach().numpy()


class TestMemoryThatMoves:
    """The parameter is what was given, wherever its memory is now."""

    def moves(self):
        def data(t):
            t.data = t.detach().clone()

        def set_(t):
            with torch.no_grad():
                t.set_(t.detach().clone())

        def channels_last(t):
            t.data = t.data.contiguous(memory_format=torch.channels_last)

        def transposed(t):
            t.data = t.data.transpose(0, 3).contiguous().transpose(0, 3)

        def storage(t):
            values = t.detach().clone()
            t.untyped_storage().resize_(0)
            t.untyped_storage().resize_(values.nbytes)
            t.data.copy_(values)

        return {
            "share_memory_": lambda t: t.share_memory_(),
            "data": data,
            "set_": set_,
            "channels_last": channels_last,
            "transposed": transposed,
            "storage": storage,
        }

    @pytest.mark.parametrize("move", ["share_memory_", "data", "set_", "channels_last", "transposed", "storage"])
    @pytest.mark.parametrize("state_dtype", ["float32", "bfloat16"])
    def test_is_followed(self, move, state_dtype, rng):
        shape = (4, 3, 5, 2)
        values = rng.standard_normal(shape).astype(F)
        grads = rng.standard_normal((4, *shape)).astype(F)
        fixed, moving = (torch.nn.Parameter(torch.tensor(values)) for _ in range(2))
        optimizers = [fs.AdamW([t], lr=0.1, state_dtype=state_dtype, ema_decay=0.5) for t in (fixed, moving)]
        for k, grad in enumerate(grads):
            if k == 2:
                self.moves()[move](moving)
            for optimizer in optimizers:
                optimizer.step([torch.tensor(grad)])
        if state_dtype == "float32" or move not in ("channels_last", "transposed"):
            assert_same_bits(moving.detach().numpy(), fixed.detach().numpy())
            assert_same_bits(np.ascontiguousarray(optimizers[1].ema[0]), optimizers[0].ema[0])
        else:  # rounded at random, by the place in memory
            np.testing.assert_allclose(moving.detach(), fixed.detach(), rtol=0, atol=0.1)

    def test_a_module_that_is_shared(self, rng):
        layer = torch.nn.Linear(512, 512)
        params = list(layer.parameters())
        optimizer = fs.SGD(params, lr=1.0)
        layer.share_memory()
        before = [p.detach().clone() for p in params]
        layer(torch.ones(1, 512)).sum().backward()
        optimizer.step([p.grad for p in params])
        for p, old in zip(params, before, strict=True):
            assert torch.equal(p.detach(), old - p.grad)

    @pytest.mark.parametrize("rule", sorted(REGISTRY))
    def test_layouts_of_every_optimizer(self, rule, rng):
        """After the axes changed places, the states belong to the same numbers as before."""
        values = reshaped_for(rule, rng.standard_normal((6, 4)).astype(F))
        if not fs._core.rules()[rule]["dense"]:
            pytest.skip("takes rows, which must lie in one piece")
        fixed, moving = (torch.nn.Parameter(torch.tensor(values)) for _ in range(2))
        optimizers = [REGISTRY[rule]([t]) for t in (fixed, moving)]
        for k in range(4):
            if k == 2:
                moving.data = moving.data.t().contiguous().t()
            grad = gradient_for(rule, values, rng)
            for optimizer in optimizers:
                optimizer.step([grad])
        # Sums over a whole tensor follow its order in memory.
        np.testing.assert_allclose(moving.detach(), fixed.detach(), rtol=1e-5, atol=1e-6)

    def test_of_numpy(self):
        p = np.ones(3, F)
        optimizer = fs.Adam({"w": p})
        optimizer.step({"w": ones(3)})
        p.resize(5, refcheck=False)
        with pytest.raises(ValueError, match=r"params\['w'\]: is of shape \(5,\) .* and was of shape \(3,\)"):
            optimizer.step({"w": ones(5)})

    def test_averages_follow(self):
        t = torch.nn.Parameter(torch.zeros(3))
        ema = fs.averaging.EMA({"w": t}, 0.5)
        swa = fs.averaging.SWA([t])
        stopping = fs.EarlyStopping(patience=1, params=[t])
        stopping.observe(1.0)
        t.data = torch.ones(3)
        ema.update()
        swa.update()
        assert ema.params["w"].tolist() == [0.5] * 3
        assert swa.params[0].tolist() == [1.0] * 3
        with ema.swap():
            assert t.tolist() == [0.5] * 3
            t.data = torch.full((3,), 7.0)
        assert t.tolist() == [1.0] * 3
        assert stopping.observe(2.0)
        assert t.tolist() == [0.0] * 3


class TestMemoryThatIsGone:
    """An error that names the parameter, not a crash."""

    def refused(self, params, grad, match):
        with pytest.raises((ValueError, TypeError), match=match):
            fs.SGD(params).step(grad)

    @pytest.mark.parametrize("size", [0, 4])
    def test_storage_that_shrank(self, size):
        t = torch.nn.Parameter(torch.ones(1000))
        optimizer = fs.SGD({"w": t})
        averages = [fs.averaging.EMA({"w": t}, 0.5), fs.averaging.SWA({"w": t})]
        t.untyped_storage().resize_(size)
        with pytest.raises(ValueError, match=r"params\['w'\]: its storage is smaller than its shape"):
            optimizer.step({"w": ones(1000)})
        for average in averages:
            with pytest.raises(ValueError, match=r"params\['w'\]: its storage"):
                average.update()

    def test_gradient_whose_storage_shrank(self):
        p, grad = ones(1000), torch.ones(1000)
        grad.untyped_storage().resize_(8)
        with pytest.raises(ValueError, match=r"grads\[0\]: its storage"):
            fs.SGD([p]).step([grad])
        assert_same_bits(p, ones(1000))

    def test_numpy_view_of_a_tensor(self):
        t = torch.ones(1000)
        optimizer = fs.SGD([t.numpy()])
        t.share_memory_()
        with pytest.raises(ValueError, match=r"params\[0\]: its memory was moved or freed by its owner"):
            optimizer.step([ones(1000)])

    def test_view_of_an_array_that_was_resized(self):
        whole = np.ones(100_000, F)
        view = whole[50_000:]
        optimizer = fs.SGD({"w": view})
        whole.resize(10, refcheck=False)
        with pytest.raises(ValueError, match=r"params\['w'\]: its memory was moved or freed"):
            optimizer.step({"w": ones(50_000)})

    def test_closed_map(self, tmp_path):
        path = tmp_path / "weights"
        path.write_bytes(bytes(4 * 1024))
        p = np.memmap(path, F, "r+")
        optimizer = fs.SGD([p], lr=1.0)
        optimizer.step([ones(1024)])
        assert p[5] == -1.0
        p._mmap.close()
        with pytest.raises(ValueError, match=r"params\[0\]: its memory is gone"):
            optimizer.step([ones(1024)])

    def test_closed_map_of_a_gradient_and_a_state(self):
        for place in ("grads", "state"):
            memory = mmap.mmap(-1, 4096)
            array = np.ndarray((1024,), F, buffer=memory)
            p = ones(1024)
            optimizer = fs.Adam([p])
            optimizer.step([ones(1024)])
            if place == "state":
                optimizer.state[0]["exp_avg"] = array
            before = p.copy()
            memory.close()
            with pytest.raises(ValueError, match=place):
                optimizer.step([array if place == "grads" else ones(1024)])
            assert_same_bits(p, before)

    def test_shared_memory(self):
        block = shared_memory.SharedMemory(create=True, size=4096)
        p = np.ndarray((1024,), F, buffer=block.buf)
        p[...] = 1.0
        optimizer = fs.SGD([p], lr=1.0)
        block.unlink()  # the name is gone, the memory is not
        optimizer.step([ones(1024)])
        assert p[7] == 0.0
        block.close()
        with pytest.raises(ValueError, match=r"params\[0\]: its memory is gone"):
            optimizer.step([ones(1024)])

    def test_bytes_that_shrank(self):
        memory = bytearray(4096)
        p = np.ndarray((1024,), F, buffer=memory)
        optimizer = fs.SGD([p])
        del memory[8:]
        with pytest.raises(ValueError, match=r"params\[0\]: its memory was moved or freed"):
            optimizer.step([ones(1024)])

    def test_of_ctypes(self):
        numbers = (ctypes.c_float * 4)(1, 1, 1, 1)
        optimizer = fs.SGD([np.ctypeslib.as_array(numbers)], lr=1.0)
        optimizer.step([ones(4)])
        assert list(numbers) == [0.0] * 4

    def test_of_functions(self):
        t = torch.nn.Parameter(torch.ones(1000))
        fs.functional.sgd(t, ones(1000), step=1, lr=1.0)
        assert t.tolist() == [0.0] * 1000
        moment = torch.zeros(1000)
        moment.untyped_storage().resize_(4)
        with pytest.raises(ValueError, match="momentum_buffer: its storage"):
            fs.functional.sgd(t, ones(1000), moment, step=1, lr=1.0, momentum=0.9)
        t.untyped_storage().resize_(0)
        with pytest.raises(ValueError, match="param: its storage"):
            fs.functional.sgd(t, ones(1000), step=1, lr=1.0)


class TestOrphans:
    """What was given as params must go on holding what is trained."""

    @pytest.mark.parametrize("make", [fs.SGD, fs.Adam, fs.Muon])
    def test_replaced_in_a_dict(self, make):
        params = {"w": ones(2, 3), "b": ones(2, 3)}
        optimizer = make(params)
        grads = {"w": ones(2, 3), "b": ones(2, 3)}
        optimizer.step(grads)
        params["w"] = params["w"] * F(0.5)
        before = {name: array.copy() for name, array in params.items()}
        with pytest.raises(ValueError, match=r"params\['w'\]: holds another array .*opt\.rebind\(params\)"):
            optimizer.step(grads)
        for name, array in params.items():
            assert_same_bits(array, before[name])
        optimizer.rebind(params)
        optimizer.step(grads)
        assert (params["w"] != before["w"]).any()

    def test_replaced_in_a_list_a_group_and_a_tree(self):
        for make in (
            lambda a, b: ([a, b], lambda p: p.__setitem__(0, a.copy()), [ones(2), ones(2)], "0"),
            lambda a, b: (
                [{"params": {"w": a}}, {"params": [b]}],
                lambda p: p[0]["params"].update(w=a.copy()),
                [ones(2), ones(2)],
                "'w'",
            ),
            lambda a, b: (
                {"net": {"w": a}, "out": [b]},
                lambda p: p["net"].update(w=a.copy()),
                {"net": {"w": ones(2)}, "out": [ones(2)]},
                "'net.w'",
            ),
        ):
            params, change, grads, name = make(ones(2), ones(2))
            optimizer = fs.Adam(params)
            optimizer.step(grads)
            change(params)
            with pytest.raises(ValueError, match=rf"params\[{name}\]: holds another array"):
                optimizer.step(grads)

    def test_added_and_removed(self):
        params = {"w": ones(2), "b": ones(2)}
        optimizer = fs.SGD(params)
        params["c"] = ones(2)
        with pytest.raises(ValueError, match="'c' is new"):
            optimizer.step({"w": ones(2), "b": ones(2)})
        del params["c"], params["b"]
        with pytest.raises(ValueError, match="'b' is gone"):
            optimizer.step({"w": ones(2), "b": ones(2)})

    def test_other_dtype(self):
        layer = torch.nn.Linear(3, 2)
        optimizer = fs.AdamW(dict(layer.named_parameters()))
        layer.half()
        with pytest.raises(ValueError, match=r"params\['weight'\]: is of shape \(2, 3\) and float16, and was"):
            optimizer.step({name: ones(*p.shape) for name, p in layer.named_parameters()})
        optimizer.rebind(dict(layer.named_parameters()))
        before = layer.weight.detach().clone()
        optimizer.step({name: ones(*p.shape) for name, p in layer.named_parameters()})
        assert (layer.weight != before).any()

    def test_averages(self):
        params = {"w": ones(2)}
        ema = fs.averaging.EMA(params, 0.5)
        stopping = fs.EarlyStopping(patience=1, params=params)
        ensemble = fs.averaging.SnapshotEnsemble(params)
        params["w"] = params["w"] * 2
        for look in (ema.update, ema.swap, ensemble.take, lambda: stopping.observe(1.0)):
            with pytest.raises(ValueError, match=r"params\['w'\]: holds another array"):
                look()

    def test_lbfgs(self):
        params = {"w": np.ones(2)}
        optimizer = fs.LBFGS(params)
        optimizer.step(lambda: (float(params["w"] @ params["w"]), {"w": 2 * params["w"]}))
        params["w"] = np.ones(2)
        with pytest.raises(ValueError, match=r"params\['w'\]: holds another array"):
            optimizer.step(lambda: (0.0, {"w": np.ones(2)}))


class TestRebind:
    def test_states_stay(self, rng):
        grads = rng.standard_normal((3, 4)).astype(F)
        params = {"w": ones(4)}
        optimizer = fs.Adam(params, lr=0.1)
        for k, grad in enumerate(grads):
            if k == 1:
                params["w"] = params["w"].copy()
                optimizer.rebind(params)
            optimizer.step({"w": grad})
        np.testing.assert_allclose(params["w"], adam_of(ones(4), grads, lr=0.1), rtol=1e-6)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (lambda p: {"w": ones(3)}, ValueError, r"params\['w'\]: expected shape \(4,\), got \(3,\)"),
            (lambda p: {"v": ones(4)}, ValueError, r"expected \['w'\], got \['v'\]"),
            (lambda p: [ones(4)], ValueError, "expected a dict"),
            (lambda p: {"w": np.ones(4, int)}, TypeError, r"params\['w'\]: expected float32"),
            (lambda p: {"w": [1.0, 2.0]}, ValueError, "expected"),
        ],
    )
    def test_what_does_not_fit(self, change, error, message):
        params = {"w": ones(4)}
        optimizer = fs.Adam(params, lr=0.1)
        optimizer.step({"w": ones(4)})
        state = copy.deepcopy(optimizer.state)
        with pytest.raises(error, match=message):
            optimizer.rebind(change(params))
        assert_same_bits(optimizer.state[0]["exp_avg"], state[0]["exp_avg"])
        optimizer.step({"w": ones(4)})
        assert params["w"][0] < 0.85


class TestCopies:
    class Runner:
        def __init__(self, make):
            torch.manual_seed(0)
            self.net = torch.nn.Linear(3, 2)
            self.opt = make(self.net)
            self.ema = fs.averaging.EMA(list(self.net.parameters()), 0.5)

        def step(self):
            for p in self.net.parameters():
                p.grad = torch.ones_like(p)
            self.opt.step([p.grad for p in self.net.parameters()])
            self.ema.update()

    @pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch"])
    @pytest.mark.parametrize(
        "make",
        [
            lambda net: fs.AdamW(list(net.parameters()), lr=0.5),
            lambda net: fs.AdamW(net.parameters(), lr=0.5),
            lambda net: fs.AdamW(net.named_parameters(), lr=0.5),
            lambda net: fs.SGD([{"params": [net.weight]}, {"params": net.bias}], lr=0.5),
            lambda net: fs.Muon([net.weight], lr=0.5),
        ],
    )
    def test_keep_their_link(self, how, make):
        first = self.Runner(make)
        if len([p for g in first.opt.param_groups for p in g["params"]]) == 2:
            first.step()
        if how == "deepcopy":
            second = copy.deepcopy(first)
        elif how == "pickle":
            second = pickle.loads(pickle.dumps((first.net, first.opt, first.ema)))
        else:
            buffer = io.BytesIO()
            torch.save((first.net, first.opt, first.ema), buffer)
            buffer.seek(0)
            second = torch.load(buffer, weights_only=False)
        net, opt, ema = second if isinstance(second, tuple) else (second.net, second.opt, second.ema)
        params = [p for group in opt.param_groups for p in group["params"]]
        assert params[0] is net.weight
        before, old = net.weight.detach().clone(), first.net.weight.detach().clone()
        opt.step([torch.ones_like(p) for p in params])
        ema.update()
        assert (net.weight != before).all()
        assert torch.equal(first.net.weight.detach(), old)
        assert not np.array_equal(ema.params[0], first.ema.params[0])


class TestAutograd:
    """A backward pass through weights that were changed meanwhile is refused, as with torch's own optimizers."""

    def changes(self, w):
        ema = fs.averaging.EMA([w], 0.5)
        swa = fs.averaging.SWA([w])
        swa.update()
        stopping = fs.EarlyStopping(patience=1, params=[w])
        stopping.observe(1.0)
        schedule_free = fs.ScheduleFreeAdamW([w])
        schedule_free.step([torch.ones(3)])
        ensemble = fs.averaging.SnapshotEnsemble([w])
        ensemble.take()

        def enter(context):
            with context:
                pass

        return {
            "step": lambda: fs.SGD([w]).step([torch.ones(3)]),
            "numpy": lambda: fs.SGD([w.detach().numpy()]).step([torch.ones(3)]),
            "function": lambda: fs.functional.sgd(w, ones(3), step=1),
            "lbfgs": lambda: fs.LBFGS([w], max_iter=1).step(lambda: (1.0, [torch.ones(3)])),
            "ema": lambda: enter(ema.swap()),
            "swa": lambda: enter(swa.swap()),
            "snapshot": lambda: enter(ensemble.use(0)),
            "stopping": stopping.restore,
            "eval": schedule_free.eval,
        }

    @pytest.mark.parametrize(
        "change", ["step", "numpy", "function", "lbfgs", "ema", "swa", "snapshot", "stopping", "eval"]
    )
    def test_is_told(self, change):
        w = torch.nn.Parameter(torch.ones(3))
        write = self.changes(w)[change]
        loss = (w**3).sum()
        write()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    def test_only_of_what_was_written(self):
        a, b = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
        optimizer = fs.SGD([a, b], skip_nonfinite=True)
        versions = a._version, b._version
        optimizer.step([torch.ones(3), None])
        assert (a._version, b._version) == (versions[0] + 1, versions[1])
        optimizer.step([torch.full((3,), torch.nan), None])
        assert a._version == versions[0] + 1

    def test_inference_tensors(self):
        with torch.inference_mode():
            w = torch.ones(3)
        fs.SGD([w], lr=1.0).step([torch.ones(3)])
        assert w.tolist() == [0.0] * 3


class TestSnapshotsInMemory:
    """A state dict stays what it was when it was taken."""

    @pytest.mark.parametrize("rule", sorted(REGISTRY))
    def test_of_optimizers(self, rule, rng):
        p = reshaped_for(rule, rng.standard_normal((4, 1)).astype(F))
        grads = [gradient_for(rule, p, rng) for _ in range(5)]
        optimizer = REGISTRY[rule](p)
        for grad in grads[:2]:
            optimizer.step(grad)
        saved, weights = optimizer.state_dict(), p.copy()
        for grad in grads[2:]:
            optimizer.step(grad)
        expected = p.copy()
        optimizer.load_state_dict(saved)
        p[...] = weights
        for grad in grads[2:]:
            optimizer.step(grad)
        assert_same_bits(p, expected)

    def test_in_place_on_demand(self):
        p = ones(3)
        optimizer = fs.Adam(p)
        optimizer.step(ones(3))
        assert optimizer.state_dict(copy=False)["state"][0]["exp_avg"] is optimizer.state[0]["exp_avg"]
        assert not np.shares_memory(optimizer.state_dict()["state"][0]["exp_avg"], optimizer.state[0]["exp_avg"])
        with pytest.raises(TypeError, match="copy: expected True or False"):
            optimizer.state_dict(copy=1)

    def test_of_averages(self):
        p = ones(3)
        for average, name in ((fs.averaging.EMA([p], 0.5), "params"), (fs.averaging.SWA([p]), "means")):
            average.update()
            saved = average.state_dict()
            before = saved[name][0].copy()
            p += 1
            average.update()
            assert_same_bits(saved[name][0], before)
            assert average.state_dict(copy=False)[name][0] is average.state_dict(copy=False)[name][0]


class TestWholeWrites:
    """Arrays that are written together are all written, or none."""

    def test_one_that_does_not_fit(self):
        a, b = ones(3), ones(3)
        ema = fs.averaging.EMA([a, b], 0.5)
        a += 1
        ema.update()
        b.flags.writeable = False
        with pytest.raises(ValueError, match=r"params\[1\]: expected a writable array"), ema.swap():
            pass
        assert a.tolist() == [2.0] * 3
        b.flags.writeable = True
        with ema.swap():
            assert a.tolist() == [1.5] * 3
        assert a.tolist() == [2.0] * 3

    def test_an_interrupt_at_every_line(self):
        """Of a swap: whatever line an exception comes from, the weights are their own afterwards."""
        import sys

        a, b = ones(3), 2 * ones(3)
        ema = fs.averaging.EMA([a, b], 0.0)
        a += 10
        ema.update()
        a -= 5
        lines = 0

        def swap():
            with ema.swap():
                pass

        def interrupt_at(line):
            seen = 0

            def trace(frame, event, argument):
                nonlocal seen
                # A signal is not handled between a with block and its end; a trace function would be called there.
                if event == "line" and frame.f_code is not swap.__code__:
                    seen += 1
                    if seen == line:
                        raise KeyboardInterrupt
                return trace

            sys.settrace(trace)
            try:
                swap()
                return True
            except KeyboardInterrupt:
                return False
            finally:
                sys.settrace(None)

        finished = False
        while not finished:
            lines += 1
            finished = interrupt_at(lines)
            assert a.tolist() == [6.0] * 3
            assert b.tolist() == [2.0] * 3
        assert lines > 3

    def test_updates(self):
        """A MemoryError in the middle of an update leaves all averages as they were."""

        class Scarce(np.ndarray):
            def __array_wrap__(self, *arguments):
                raise MemoryError

        a, b = ones(3), ones(3)
        ema = fs.averaging.EMA([a, b], 0.5)
        a += 1
        b.resize(4, refcheck=False)
        with pytest.raises(ValueError, match=r"params\[1\]"):
            ema.update()
        assert ema.updates == 0
        assert ema.params[0].tolist() == [1.0] * 3
