"""SyncBatchNorm on several processes against torch's batch norm on the whole batch, in one."""

import copy
import pickle
import socket

import numpy as np
import pytest

pytest.importorskip("torch")

import sync_ranks
import sync_tasks
import torch

from fusedstep.torch import SyncBatchNorm, convert_batch_norm, convert_sync_batch_norm, revert
from fusedstep.torch import nn as ours

D = np.float64
#: Of each case: the shape without N, and the samples of each rank.
SHAPES = {
    "rows": ((5,), [(4, 2), (3, 0, 6)]),
    "sequences": ((5, 7), [(2, 2), (1, 1, 1)]),
    "planes": ((5, 4, 3), [(0, 3), (2, 0, 1)]),
    "volumes": ((3, 2, 3, 2), [(3, 1)]),
}


@pytest.fixture(scope="module")
def ranks():
    found = sync_ranks.Ranks()
    yield found
    found.end()


def whole(parts, index):
    return np.concatenate([part[index] for part in parts])


def draw(shape, split, batches=2, dtype="float64"):
    """Of every batch the parts of the ranks: input, residual and gradient, exact in the dtype."""
    rng = np.random.default_rng(20260101)
    kind = getattr(torch, dtype)

    def exact(n, scale, shift):
        values = torch.from_numpy(rng.normal(shift, scale, (n, *shape))).to(kind)
        return (values.float() if kind.itemsize == 2 else values).numpy()

    return [[(exact(n, 2, 3), exact(n, 1, 0), exact(n, 1, 0)) for n in split] for _ in range(batches)]


def state_of(channels, dtype=D, batches=4):
    rng = np.random.default_rng(3)
    return {
        "weight": rng.uniform(0.5, 1.5, channels).astype(dtype),
        "bias": rng.normal(0, 1, channels).astype(dtype),
        "running_mean": rng.normal(0, 1, channels).astype(dtype),
        "running_var": rng.uniform(0.5, 1.5, channels).astype(dtype),
        "num_batches_tracked": np.array(batches),
    }


def in_one_process(batches, state, *, residual=False, activation=None, training=True, **options):
    """What torch computes of the whole batches, in float64."""
    channels = batches[0][0][0].shape[1]
    layer = torch.nn.SyncBatchNorm(channels, **options).double().train(training)
    layer.load_state_dict({name: torch.from_numpy(np.asarray(value)) for name, value in state.items()})
    found = {"y": [], "dx": [], "dweight": [], "dbias": [], "dresidual": []}
    for parts in batches:
        x, r, dy = (torch.from_numpy(whole(parts, k)).double() for k in range(3))
        x.requires_grad_()
        r.requires_grad_()
        layer.zero_grad()
        y = layer(x) + (r if residual else 0.0)
        y = torch.relu(y) if activation else y
        y.backward(dy)
        grads = (layer.weight.grad, layer.bias.grad) if layer.affine else (None, None)
        for name, value in zip(found, (y, x.grad, *grads, r.grad), strict=True):
            found[name].append(sync_tasks.plain(value))
    found["state"] = {name: sync_tasks.plain(value) for name, value in layer.state_dict().items()}
    return found


def assert_close(actual, expected, tolerance):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def assert_whole(answers, expected, tolerance, affine=True, residual=False):
    """Parts of outputs and gradients one after the other; sums of the parameters' gradients; one state."""
    for k in range(len(expected["y"])):
        for name in ("y", "dx", *(["dresidual"] if residual else [])):
            assert_close(np.concatenate([answer[name][k] for answer in answers]), expected[name][k], tolerance)
        for name in ("dweight", "dbias") if affine else ():
            # Sums over all values, of which rounding is in proportion to the terms.
            assert_close(sum(answer[name][k].astype(D) for answer in answers), expected[name][k], 20 * tolerance)
    for answer in answers:
        assert answer["state"].keys() == expected["state"].keys()
        for name, value in expected["state"].items():
            assert_close(answer["state"][name], value, tolerance)
            assert np.array_equal(answer["state"][name], answers[0]["state"][name], equal_nan=True), name
        assert all(map(all, answer["strides"]))


class TestAgainstTorch:
    @pytest.mark.parametrize("name", SHAPES)
    @pytest.mark.parametrize("activation", [None, "relu"])
    def test_float64(self, ranks, name, activation):
        shape, splits = SHAPES[name]
        for split in splits:
            batches, state = draw(shape, split), state_of(shape[0])
            options = {"activation": activation, "dtype": torch.float64}
            answers = ranks.run(
                len(split), sync_tasks.passes, batches=batches, state=state, options=options, residual=True
            )
            expected = in_one_process(batches, state, activation=activation, residual=True)
            assert_whole(answers, expected, 1e-12, residual=True)

    @pytest.mark.parametrize("options", [{"momentum": None}, {"track_running_stats": False}, {"affine": False},
                                         {"eps": 0.1, "momentum": 1.0}], ids=str)  # fmt: skip
    def test_options(self, ranks, options):
        batches, state = draw((4, 3), (2, 3), 3), state_of(4)
        if options.get("affine") is False:
            del state["weight"], state["bias"]
        if options.get("track_running_stats") is False:
            state = {name: state[name] for name in ("weight", "bias")}
        answers = ranks.run(2, sync_tasks.passes, batches=batches, state=state,
                            options={**options, "dtype": torch.float64})  # fmt: skip
        assert_whole(answers, in_one_process(batches, state, **options), 1e-12, options.get("affine", True))

    @pytest.mark.parametrize("last", [False, True])
    def test_float32(self, ranks, last):
        batches, state = draw((6, 5, 4), (2, 0, 3), dtype="float32"), state_of(6, np.float32)
        answers = ranks.run(3, sync_tasks.passes, batches=batches, state=state, options={}, dtype="float32", last=last)
        assert_whole(answers, in_one_process(batches, state), 1e-6)

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_16_bits_with_parameters_in_float32(self, ranks, dtype):
        batches, state = draw((6, 5, 4), (2, 3), dtype=dtype), state_of(6, np.float32)
        answers = ranks.run(2, sync_tasks.passes, batches=batches, state=state, options={}, dtype=dtype, last=True)
        expected = in_one_process(batches, state)
        ulp = 2.0**-8 if dtype == "bfloat16" else 2.0**-11
        for k in range(2):
            for name in ("y", "dx"):
                assert_close(np.concatenate([answer[name][k] for answer in answers]), expected[name][k], 1.01 * ulp)
        assert all(map(all, answers[0]["strides"]))
        for name, value in expected["state"].items():
            assert_close(answers[0]["state"][name], value, 1e-6)

    def test_parameters_of_16_bits(self, ranks):
        batches = draw((3,), (2, 3), dtype="bfloat16")
        state = {"weight": np.ones(3), "bias": np.zeros(3), "running_mean": np.zeros(3), "running_var": np.ones(3),
                 "num_batches_tracked": np.array(0)}  # fmt: skip
        answers = ranks.run(2, sync_tasks.passes, batches=batches, state=state, dtype="bfloat16",
                            options={"dtype": torch.bfloat16})  # fmt: skip
        expected = in_one_process(batches, state)
        for name, value in expected["state"].items():
            assert_close(answers[1]["state"][name], value, 2.0**-7)
        assert_close(sum(answer["dweight"][0] for answer in answers), expected["dweight"][0], 0.05)

    def test_residuals_of_other_shapes_and_dtypes(self, ranks):
        ((first, second),) = draw((3, 2), (2, 3), 1)
        parts = [first[0][..., 0], second[0][..., 0]]
        x = torch.from_numpy(np.concatenate(parts))
        z = torch.nn.functional.batch_norm(x, None, None, training=True)
        answers = ranks.run(2, sync_tasks.residuals, parts=parts)
        for k, residual in enumerate([-0.25, 0.5, x.float()]):
            actual = np.concatenate([found[k] for found, _ in answers])
            assert_close(actual, torch.relu(z + residual).numpy(), 1e-12)
        assert all("residual: expected a shape like" in text for _, text in answers)

    def test_large_mean(self, ranks):
        # In float32 sums of squares, nothing would be left of the variance.
        batches = [[tuple(np.float32(array + (1e4 if k == 0 else 0)) for k, array in enumerate(part)) for part in parts]
                   for parts in draw((2, 50), (3, 1))]  # fmt: skip
        state = state_of(2, np.float32)
        answers = ranks.run(2, sync_tasks.passes, batches=batches, state=state, options={}, dtype="float32")
        expected = in_one_process(batches, state)
        for k in range(2):
            assert_close(np.concatenate([answer["y"][k] for answer in answers]), expected["y"][k], 1e-5)
        assert_close(answers[0]["state"]["running_var"], expected["state"]["running_var"], 1e-6)


class TestCollectives:
    def test_one_forward_one_backward(self, ranks):
        for activation in (None, "relu"):
            answers = ranks.run(3, sync_tasks.passes, batches=draw((5, 3), (2, 0, 1), 3), state=state_of(5),
                                options={"dtype": torch.float64, "activation": activation}, residual=True)  # fmt: skip
            assert [answer["calls"] for answer in answers] == [[(1, 1)] * 3] * 3

    def test_none_backward_without_a_gradient_of_the_input(self, ranks):
        batches, state = draw((5, 3), (2, 1)), state_of(5)
        for activation in (None, "relu"):
            options = {"dtype": torch.float64, "activation": activation}
            answers = ranks.run(2, sync_tasks.passes, batches=batches, state=state, options=options, residual=True,
                                frozen=True)  # fmt: skip
            assert [answer["calls"] for answer in answers] == [[(1, 0)] * 2] * 2
            expected = in_one_process(batches, state, residual=True, activation=activation)
            for k in range(2):
                for name in ("dweight", "dbias"):
                    assert_close(sum(answer[name][k] for answer in answers), expected[name][k], 1e-11)
                actual = np.concatenate([answer["dresidual"][k] for answer in answers])
                assert_close(actual, expected["dresidual"][k], 1e-12)

    def test_none_in_evaluation(self, ranks):
        batches, state = draw((5, 3), (2, 1)), state_of(5)
        options = {"dtype": torch.float64}
        answers = ranks.run(2, sync_tasks.passes, batches=batches, state=state, options=options, training=False)
        assert [answer["calls"] for answer in answers] == [[(0, 0)] * 2] * 2
        assert_whole(answers, in_one_process(batches, state, training=False), 1e-12)

    def test_none_in_a_group_of_one(self, ranks):
        assert ranks.run(2, sync_tasks.alone) == [(True, 0)] * 2

    def test_store_at_a_port(self, ranks):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        answers = ranks.run(2, sync_tasks.over_tcp, initialized=False, port=port)
        assert_close(np.concatenate(answers), [[-1.0] * 2, [1.0] * 2], 1e-4)

    def test_none_without_torch_distributed(self, ranks):
        assert ranks.run(1, sync_tasks.without_group, initialized=False) == [(True, True)]

    def test_a_group_of_some_ranks(self, ranks):
        first, outside, last = ranks.ask(3, sync_tasks.subgroup, members=[0, 2])
        # Of 0 and 2: mean 1, variance 1.
        assert_close(first, [[-1.0, -1.0]], 1e-5)
        assert_close(last, [[1.0, 1.0]], 1e-5)
        assert outside.kind == "ValueError"
        assert outside.text == "process_group: rank 1 is not one of its members"


class TestBoundaries:
    def test_nan_of_one_rank(self, ranks):
        batches, state = draw((3, 2), (2, 2)), state_of(3)
        batches[0][1][0][0, 1, 0] = np.nan
        answers = ranks.run(2, sync_tasks.passes, batches=batches, state=state, options={"dtype": torch.float64})
        expected = in_one_process(batches, state)
        assert np.isnan(expected["y"][0][:, 1]).all()
        assert_whole(answers, expected, 1e-12)

    def test_no_values_anywhere(self, ranks):
        batches, state = draw((3, 2), (0, 0)), state_of(3)
        for answer in ranks.run(2, sync_tasks.passes, batches=batches, state=state, options={"dtype": torch.float64}):
            assert answer["y"][0].shape == answer["dx"][0].shape == (0, 3, 2)
            assert not answer["dweight"][0].any()
            assert not answer["dbias"][0].any()
            for name in ("running_mean", "running_var"):
                assert np.array_equal(answer["state"][name], state[name])

    @pytest.mark.parametrize("shape", [(3,), (3, 1, 1)])
    def test_one_value_over_all_ranks(self, ranks, shape):
        batches, state = draw(shape, (0, 1, 0)), state_of(3)
        for answer in ranks.ask(3, sync_tasks.passes, batches=batches, state=state, options={"dtype": torch.float64}):
            assert answer.kind == "ValueError"
            assert "expected more than 1 value per channel" in answer.text

    def test_one_value_a_rank_is_enough(self, ranks):
        batches, state = draw((3,), (1, 1)), state_of(3)
        answers = ranks.run(2, sync_tasks.passes, batches=batches, state=state, options={"dtype": torch.float64})
        # With two values, what is left of dx is rounding, times up to 1 / √eps.
        assert_whole(answers, in_one_process(batches, state), 1e-12)


DISAGREEMENTS = {
    "channels": ([{"num_features": 3}, {"num_features": 4}], [{}, {"shape": (2, 4)}], "rank 1 has 4, rank 0 has 3"),
    "many_channels": ([{"num_features": 3}, {"num_features": 4000}], [{}, {"shape": (2, 4000)}], "rank 1 has 4000"),
    "dtype": ([{"num_features": 3}] * 3, [{}, {}, {"dtype": "bfloat16"}],
              "dtype: rank 2 has torch.bfloat16, rank 0 has torch.float32"),
    "activation": ([{"num_features": 3}, {"num_features": 3, "activation": "relu"}], [{}, {}],
                   "activation: rank 1 has relu, rank 0 has None"),
    "eps": ([{"num_features": 3}, {"num_features": 3, "eps": 0.5}], [{}, {}], "eps: rank 1 has 0.5, rank 0 has 1e-05"),
    "momentum": ([{"num_features": 3}, {"num_features": 3, "momentum": 0.5}], [{}, {}], "momentum: rank 1 has 0.5"),
    "affine": ([{"num_features": 3}, {"num_features": 3, "affine": False}], [{}, {}], "weight: rank 1 has None"),
    "gradient": ([{"num_features": 3}] * 2, [{"gradient": False}, {}], "gradient: rank 1 has True, rank 0 has False"),
    "a_bad_input": ([{"num_features": 3}] * 3, [{}, {"shape": (2, 5)}, {}],
                    "input: expected (N, 3, …), got shape (2, 5)"),
    "a_layout": ([{"num_features": 3}] * 2, [{"sparse": True}, {}], "input: expected a dense tensor"),
    "a_dtype": ([{"num_features": 3}] * 2, [{}, {"dtype": "complex64"}], "got torch.complex64"),
}  # fmt: skip


class TestErrors:
    @pytest.mark.parametrize("name", DISAGREEMENTS)
    def test_all_ranks_hear_of_it(self, ranks, name):
        layers, inputs, words = DISAGREEMENTS[name]
        answers = ranks.run(len(layers), sync_tasks.disagreeing, layers=layers, inputs=inputs)
        for rank, (text, kept, y, running) in enumerate(answers):
            assert text is not None, rank
            assert words in text, rank
            assert kept, rank
            # All are ready for the next layer: values 0, 1, … of the ranks.
            assert_close(running, [0.1 * (len(layers) - 1) / 2] * 3, 1e-6)
            assert np.isfinite(y).all()
        if name.startswith("a_"):
            assert sum("refused" in text for text, *_ in answers) == len(layers) - 1

    def test_no_group(self, ranks):
        for answer in ranks.ask(2, sync_tasks.wrong_group):
            assert repr(answer) == "TypeError: process_group: expected a torch.distributed.ProcessGroup, got list"

    def test_second_derivative(self, ranks):
        for same, text in ranks.run(2, sync_tasks.second_derivative):
            assert same
            assert "SyncBatchNorm of fusedstep.torch has no second derivative" in text

    def test_overwritten_input(self, ranks):
        first, second = ranks.ask(2, sync_tasks.overwritten)
        assert "modified by an inplace operation" in second.text
        assert first.text.startswith("rank 1 refused: RuntimeError")

    def test_tracers_and_modes(self, ranks):
        for heard, counted, compiled, meta in ranks.run(2, sync_tasks.tracers):
            assert heard.pop("dtensor") == "TypeError: input: expected a plain tensor, got a DTensor"
            for name, text in heard.items():
                assert "SyncBatchNorm of fusedstep.torch exchanges statistics" in str(text), name
            assert counted
            assert compiled
            assert meta == (3, 2)

    def test_a_rank_that_does_not_come(self, ranks):
        first, _, last = ranks.ask(3, sync_tasks.missing)
        for answer in (first, last):
            assert repr(answer) == "RuntimeError: SyncBatchNorm 0 of the group: rank 1 did not call it"

    def test_activation(self):
        with pytest.raises(ValueError, match="activation: expected 'relu' or None, got 'tanh'"):
            SyncBatchNorm(3, activation="tanh")


STEPS = 20


def trained(dtype):
    """Parameters and buffers after torch's own steps on the whole batches."""
    kind = getattr(torch, dtype)
    model = sync_tasks.network().to(kind)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for x, labels, _ in sync_tasks.batches_of(STEPS, kind):
        opt.zero_grad()
        sync_tasks.mean_loss(model, x, labels, 1 / len(x)).backward()
        opt.step()
    return {name: sync_tasks.plain(value) for name, value in model.state_dict().items()}


class TestEngines:
    @pytest.mark.parametrize(("size", "engine"), [(2, "ddp"), (3, "ddp"), (2, "fsdp"), (3, "fsdp"), (2, "compiled")])
    def test_training(self, ranks, size, engine):
        expected = trained("float64")
        for answer in ranks.run(size, sync_tasks.train, engine=engine, steps=STEPS):
            assert answer.keys() == expected.keys()
            for name, value in expected.items():
                assert_close(answer[name], value, 1e-12)

    def test_layers_sharded_one_by_one(self, ranks):
        expected = trained("float64")
        for answer in ranks.run(3, sync_tasks.train, engine="fsdp", steps=STEPS, each=True):
            for name, value in expected.items():
                assert_close(answer[name], value, 1e-12)

    def test_activation_checkpointing(self, ranks):
        expected = trained("float64")
        for answer in ranks.run(2, sync_tasks.train, engine="ddp", steps=STEPS, checkpoint=True):
            for name, value in expected.items():
                # The repeated pass updates the running statistics again, as torch's layers do.
                if "running" not in name and "tracked" not in name:
                    assert_close(answer[name], value, 1e-12)


class TestConvert:
    def test_in_place(self):
        model = torch.nn.Sequential(
            torch.nn.BatchNorm1d(3), torch.nn.BatchNorm2d(3, affine=False), torch.nn.BatchNorm3d(3, momentum=None),
            torch.nn.SyncBatchNorm(3), ours.BatchNorm2d(3, activation="relu"), torch.nn.ReLU(),
        )  # fmt: skip
        model[1].eval()
        seen = []
        model[0].register_forward_hook(lambda *_: seen.append(1))
        before, tensors = list(model), {id(value) for value in model.state_dict(keep_vars=True).values()}
        assert convert_sync_batch_norm(model) is model
        assert list(model) == before
        assert all(type(layer) is SyncBatchNorm for layer in model[:5])
        assert {id(value) for value in model.state_dict(keep_vars=True).values()} == tensors
        assert [layer.training for layer in model[:5]] == [True, False, True, True, True]
        assert [layer.activation for layer in model[:5]] == [None, None, None, None, "relu"]
        assert model[2].momentum is None
        x = torch.randn(4, 3)
        wanted = torch.nn.BatchNorm1d(3)(x)
        torch.testing.assert_close(model[0](x), wanted)
        assert seen == [1]

    def test_the_model_itself(self):
        layer = torch.nn.BatchNorm2d(3)
        assert convert_sync_batch_norm(layer) is layer
        assert type(layer) is SyncBatchNorm
        # DDP refuses torch's on the CPU.
        assert not isinstance(layer, torch.nn.SyncBatchNorm)

    def test_fused_forward(self):
        model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.ReLU())
        x = torch.randn(3, 1, 5, 5)
        wanted = model(x)
        first, second = copy.deepcopy(model), copy.deepcopy(model)
        convert_batch_norm(first)
        convert_sync_batch_norm(first)
        convert_sync_batch_norm(second)
        assert convert_batch_norm(second).fused == {"1": "relu"}
        for converted in (first, second):
            torch.testing.assert_close(converted(x), wanted)
            revert(converted)
            assert type(converted[1]) is SyncBatchNorm
            torch.testing.assert_close(converted(x), wanted)

    def test_errors(self):
        class Own(torch.nn.BatchNorm1d):
            pass

        model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), Own(2))
        with pytest.raises(TypeError, match="'1' is a Own"):
            convert_sync_batch_norm(model)
        assert type(model[0]) is torch.nn.BatchNorm1d
        with pytest.raises(TypeError, match="got list"):
            convert_sync_batch_norm([model])

    def test_copies_with_a_group(self, ranks):
        for rank, (shared, y, text) in enumerate(ranks.run(2, sync_tasks.copies)):
            assert shared
            assert_close(y, [[2 * rank - 1] * 2], 1e-4)
            assert text == "process_group: cannot be pickled; save the state dict"

    def test_copies(self):
        layer = SyncBatchNorm(3, activation="relu")
        for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert repr(copied) == repr(layer)
            assert copied.state_dict().keys() == torch.nn.SyncBatchNorm(3).state_dict().keys()
        assert ours.SyncBatchNorm is SyncBatchNorm
