"""A model of torch's on these kernels, and back."""

import copy
import gc
import pickle
import re

import pytest
import torch
from networks import Block, ResNet, batch
from torch import nn

import fusedstep.torch as ft

D = torch.float64


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(20260101)


def train(model, x, target, steps=2):
    """Output, gradients and buffers after some passes, and the output in evaluation."""
    for _ in range(steps):
        model.zero_grad()
        y = model(x)
        nn.functional.cross_entropy(y.flatten(1), target).backward()
    results = [
        y.detach(),
        *(p.grad.clone() for p in model.parameters() if p.grad is not None),
        *(b.clone() for b in model.buffers()),
    ]
    with torch.no_grad():
        return [*results, model.eval()(x), model.train()(x)]


def assert_same(model, converted, dtype=D, tolerance=1e-12, side=32):
    x, target = batch(side=side, dtype=dtype, classes=2)
    for mine, theirs in zip(train(converted, x, target), train(model, x, target), strict=True):
        scale = max(1.0, theirs.abs().max().item())
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance * scale)


def converted(model):
    again = copy.deepcopy(model)
    return again, ft.convert_batch_norm(again)


class TestResNet:
    def test_float64(self):
        model = ResNet().double()
        again, report = converted(model)
        assert len(report.converted) == 20
        assert sum(what == "relu" for what in report.fused.values()) == 9
        assert sum(what == "add, relu" for what in report.fused.values()) == 8
        assert not report.left
        assert not report.unfused
        assert_same(model, again)
        ft.revert(again)
        assert str(again) == str(model)
        assert not any("forward" in vars(module) for module in again.modules())
        assert_same(model, again)

    @pytest.mark.parametrize("last", [False, True])
    def test_float32(self, last):
        """The gradients of ResNet-18 agree to 1e-5 of the largest, relative to float64 no worse than torch's own."""
        model = ResNet(16)
        again, _ = converted(model)
        exact = copy.deepcopy(model).double()
        x, target = batch(8)
        if last:
            x = x.contiguous(memory_format=torch.channels_last)
        for network in (model, again, exact):
            nn.functional.cross_entropy(network(x.to(network.fc.weight.dtype)), target).backward()
        for mine, theirs, truth in zip(again.parameters(), model.parameters(), exact.parameters(), strict=True):
            scale = truth.grad.abs().max().item()
            assert (mine.grad - theirs.grad).abs().max().item() <= 1e-5 * max(scale, 1.0)
            error, allowed = (mine.grad - truth.grad).abs().max(), (theirs.grad - truth.grad).abs().max()
            assert error <= 3 * allowed + 1e-6 * scale

    def test_objects_are_the_same(self):
        model = ResNet()
        before = list(model.modules()), list(model.parameters()), list(model.buffers()), list(model.state_dict())
        model.blocks[0].eval()
        ft.convert_batch_norm(model)
        after = list(model.modules()), list(model.parameters()), list(model.buffers()), list(model.state_dict())
        for mine, theirs in zip(after, before, strict=True):
            assert all(a is b or a == b for a, b in zip(mine, theirs, strict=True))
        assert not model.blocks[0].bn1.training
        assert model.blocks[1].bn1.training

    def test_copies(self, tmp_path):
        model = ResNet().double()
        again, _ = converted(model)
        twin = copy.deepcopy(again)
        assert twin.blocks[0].forward.__self__ is twin.blocks[0]
        assert_same(model, twin)
        torch.save(again, tmp_path / "model.pt")
        for loaded in (pickle.loads(pickle.dumps(again)), torch.load(tmp_path / "model.pt", weights_only=False)):
            fresh = copy.deepcopy(loaded)
            report = ft.convert_batch_norm(fresh)
            assert (len(report.converted), len(report.fused)) == (0, 17)
            x, target = batch(dtype=D)
            for a, b in zip(train(loaded, x, target), train(fresh, x, target), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

    def test_again_changes_nothing(self):
        model = ResNet()
        ft.convert_batch_norm(model)
        report = ft.convert_batch_norm(model)
        assert (report.converted, report.fused, report.left, report.unfused) == ([], {}, {}, {})

    def test_without_fusion(self):
        model = ResNet().double()
        again = copy.deepcopy(model)
        report = ft.convert_batch_norm(again, fuse=False)
        assert len(report.converted) == 20
        assert not report.fused
        assert_same(model, again)

    def test_compile_and_export(self):
        model = nn.Sequential(Block(3, 4, 1), Block(4, 4, 1)).double().eval()
        again, _ = converted(model)
        x, _ = batch(side=4, dtype=D)
        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(again, backend="eager", fullgraph=True)(x), model(x))
        exported = torch.export.export(again, (x,))
        assert not any("relu" in str(node.target) for node in exported.graph.nodes)
        torch.testing.assert_close(exported.module()(x), model(x))


class TestHooks:
    def test_they_stay_and_see_what_they_saw(self):
        model = ResNet().double()
        seen = []
        model.blocks[0].bn1.register_forward_hook(lambda module, args, output: seen.append(output.min().item()))
        model.blocks[1].relu.register_forward_hook(lambda module, args, output: None)
        report = ft.convert_batch_norm(model)
        assert set(report.unfused) == {"blocks.0.bn1", "blocks.1.bn1", "blocks.1.bn2"}
        model(batch(dtype=D)[0])
        assert seen[0] < 0

    def test_one_that_comes_later(self):
        model, _ = converted(ResNet().double())
        seen = []
        x, _ = batch(dtype=D)
        expected = model.eval()(x)
        handle = model.blocks[0].bn1.register_forward_hook(
            lambda module, args, output: seen.append(output.min().item())
        )
        torch.testing.assert_close(model(x), expected)
        assert seen[0] < 0
        handle.remove()
        torch.testing.assert_close(model(x), expected)
        assert len(seen) == 1


class Forward(nn.Module):
    """A convolution, a batch norm, and a forward of the test's."""

    def __init__(self, forward, **attributes):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.0)
        self.seen = []
        self.call = forward
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.call(self, x)


def branch_on_flag(self, x):
    y = self.bn(self.conv(x))
    return self.relu(y) if self.flag else torch.tanh(y)


def other_way_round(self, x):
    return (x + self.bn(self.conv(x))).relu()


def in_place_method(self, x):
    return torch.relu_(self.bn(self.conv(x)).add_(x))


def first_a_number(self, x):
    return self.relu(self.bn(self.conv(x)) + 1.5)


def used_twice(self, x):
    y = self.bn(self.conv(x))
    return self.relu(y) + y.exp()


def writes_into_the_other(self, x):
    x = self.conv(x)
    y = x * 2
    y += self.bn(x)
    return self.relu(y) + y


def input_written_between(self, x):
    x = self.conv(x)
    y = self.bn(x)
    z = x.mul_(2)
    return self.relu(y) + z


def view_written_between(self, x):
    x = self.conv(x)
    v = x.view(-1)
    y = self.bn(x)
    z = v.mul_(2)
    return self.relu(y) + z.view_as(y)


def itself_twice(self, x):
    y = self.bn(self.conv(x))
    return self.relu(y + y)


def scaled(self, x):
    return self.relu(torch.add(self.bn(self.conv(x)), x, alpha=2))


def broadcast(self, x):
    return self.relu(self.bn(self.conv(x)) + x.mean((2, 3), keepdim=True))


def branch_on_training(self, x):
    y = self.bn(self.conv(x))
    return self.relu(y) if self.training else y


def dropout_function(self, x):
    return nn.functional.dropout(self.relu(self.bn(self.conv(x))), 0.0, self.training)


def branch_on_data(self, x):
    return self.relu(self.bn(self.conv(x))) if x.sum() > -1e9 else x


def looks_at_kinds(self, x):
    x = torch.cat(x, 1) if isinstance(x, list) else x
    return self.relu(self.bn(self.conv(x)))


def random_tensor(self, x):
    if torch.rand(()) < 2:
        x = self.conv(x)
    return self.relu(self.bn(x))


def keeps_a_count(self, x):
    self.count = x
    return self.relu(self.bn(self.conv(x)))


def fills_a_list(self, x):
    self.seen.append(1)
    return self.relu(self.bn(self.conv(x)))


def without_gradient(self, x):
    with torch.no_grad():
        x = self.conv(x)
    return self.relu(self.bn(x))


class TestPatterns:
    @pytest.mark.parametrize(
        ("forward", "what"),
        [(other_way_round, "add, relu"), (in_place_method, "add, relu"), (broadcast, "add, relu"), (scaled, None)]
        + [(f, None) for f in (first_a_number, used_twice, writes_into_the_other, itself_twice)],
    )
    def test_where_it_may(self, forward, what):
        model = Forward(forward).double()
        again, report = converted(model)
        assert report.fused.get("bn") == what
        assert not report.unfused
        assert_same(model, again, side=4)

    @pytest.mark.parametrize(
        ("forward", "reason"),
        [
            (branch_on_training, "in training is another one"),
            (dropout_function, "in training is another one"),
            (branch_on_data, "torch.fx cannot trace it"),
            (looks_at_kinds, "uses 'isinstance'"),
            (random_tensor, "calls rand on tensors of its own"),
            (keeps_a_count, "assigns to 'count'"),
            (fills_a_list, "changes a container"),
            (without_gradient, "_set_grad_enabled|with statement"),
        ],
    )
    def test_where_a_trace_does_not_show_it(self, forward, reason):
        model = Forward(forward).double()
        again, report = converted(model)
        again.seen.clear()
        assert list(report.unfused) == [""]
        assert re.search(reason, report.unfused[""])
        assert "not fused: the model: " in str(report)
        assert report.converted == ["bn"]
        assert "count" not in vars(again)
        assert_same(model, again, side=4)

    @pytest.mark.parametrize("forward", [input_written_between, view_written_between])
    def test_input_written_between(self, forward):
        """Autograd refuses this one, torch's too; without it the order counts."""
        model = Forward(forward).double().eval()
        again, report = converted(model)
        assert not report.fused
        x, _ = batch(side=4, dtype=D)
        with torch.no_grad():
            torch.testing.assert_close(again(x.clone()), model(x.clone()))

    def test_an_attribute_that_changes(self):
        model = Forward(branch_on_flag, flag=True).double()
        again, report = converted(model)
        assert report.fused == {"bn": "relu"}
        model.flag = again.flag = False
        assert_same(model, again, side=4)

    def test_a_child_that_changes(self):
        model = Forward(other_way_round).double()
        again, _ = converted(model)
        model.bn = again.bn = nn.Identity()
        assert_same(model, again, side=4)

    def test_optional_arguments(self):
        class Optional(Forward):
            def forward(self, x, mask=None):
                y = self.relu(self.bn(self.conv(x)))
                return y if mask is None else y * mask

        model = Optional(None).double()
        again, report = converted(model)
        assert "optional argument, 'mask'" in report.unfused[""]
        assert_same(model, again, side=4)

    def test_sequential(self):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))
        again, report = converted(model.double())
        assert report.fused == {"1": "relu"}
        assert_same(model, again)
        for network in (model, again):
            network.append(nn.ReLU6().double())
        assert_same(model, again)

    def test_what_the_garbage_collector_calls_is_not_the_forwards(self):
        seen = []

        class Watcher:
            def __call__(self, phase, info):
                self.phase = phase
                seen.append(phase)

        model = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()).double()
        threshold, watcher = gc.get_threshold(), Watcher()
        gc.callbacks.append(watcher)
        gc.set_threshold(1)
        try:
            _, report = converted(model)
        finally:
            gc.set_threshold(*threshold)
            gc.callbacks.remove(watcher)
        assert seen
        assert gc.isenabled()
        assert report.fused == {"0": "relu"}

    def test_lists_of_modules(self):
        class Lists(nn.Module):
            def __init__(self):
                super().__init__()
                self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(3))

            def forward(self, x):
                for norm in self.norms:
                    x = norm(x).relu()
                return x

        model = Lists().double()
        again, report = converted(model)
        assert report.fused == {f"norms.{k}": "relu" for k in range(3)}
        assert_same(model, again, side=4)

    def test_dimensions_and_dtypes(self):
        model = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU())
        again, report = converted(model)
        assert report.fused == {"0": "relu"}
        x = torch.randn(5, 3, 7)
        torch.testing.assert_close(again(x), model(x))
        again(torch.randn(5, 3, 7, dtype=torch.bfloat16))


class TestLeftAlone:
    def test_other_modules(self):
        class Mine(nn.BatchNorm2d):
            pass

        model = nn.ModuleDict(
            {
                "sync": nn.SyncBatchNorm(3),
                "lazy": nn.LazyBatchNorm2d(),
                "instance": nn.InstanceNorm2d(3),
                "mine": Mine(3),
                "plain": nn.BatchNorm2d(3),
            }
        )
        types = {name: type(module) for name, module in model.items()}
        report = ft.convert_batch_norm(model)
        assert report.left == {
            "sync": "it is a SyncBatchNorm",
            "lazy": "it is a LazyBatchNorm2d",
            "mine": "it is a Mine",
        }
        assert report.converted == ["plain"]
        assert "left alone: sync: it is a SyncBatchNorm" in str(report)
        ft.revert(model)
        assert {name: type(module) for name, module in model.items()} == types

    def test_a_batch_norm_itself(self):
        layer = nn.BatchNorm2d(3)
        assert ft.convert_batch_norm(layer).converted == [""]
        assert type(layer) is ft.BatchNorm2d
        ft.revert(layer)
        assert type(layer) is nn.BatchNorm2d

    def test_layers_of_ours_from_the_start(self):
        model = nn.Sequential(ft.BatchNorm2d(3), nn.ReLU())
        assert ft.convert_batch_norm(model).fused == {"0": "relu"}
        ft.revert(model)
        assert type(model[0]) is ft.BatchNorm2d

    def test_an_activation_since(self):
        model = nn.Sequential(nn.BatchNorm2d(3))
        ft.convert_batch_norm(model)
        model[0].activation = "relu"
        with pytest.raises(ValueError, match="'0' has got activation='relu'"):
            ft.revert(model)
        assert type(model[0]) is ft.BatchNorm2d

    def test_no_module(self):
        for function in (ft.convert_batch_norm, ft.revert):
            with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got list"):
                function([])

    def test_a_meta_model(self):
        with torch.device("meta"):
            model = Block(3, 3, 1)
        assert len(ft.convert_batch_norm(model).fused) == 2
        assert model(torch.zeros(2, 3, 4, 4, device="meta")).shape == (2, 3, 4, 4)


SWITCH = [True]


class Looks(nn.Module):
    """Norm, then what `after` says: a forward that looks at something."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.act = torch.relu
        self.kinds = ["relu"]
        self.config = Config()


class Config:
    relu = True

    def __init__(self):
        self.relu = True


def at_the_mode_of_a_part(self, x):
    y = self.norm(x)
    return torch.relu(y) if self.norm.training else y


def at_the_gradient_mode(self, x):
    y = self.norm(x)
    return torch.relu(y) if torch.is_grad_enabled() else y


def at_a_global(self, x):
    y = self.norm(x)
    return torch.relu(y) if SWITCH[0] else y


def at_a_function(self, x):
    return self.act(self.norm(x))


def at_a_list(self, x):
    y = self.norm(x)
    return torch.relu(y) if self.kinds[0] == "relu" else y


def at_an_object(self, x):
    y = self.norm(x)
    return torch.relu(y) if self.config.relu else y


def looking(forward):
    model = type("Looking", (Looks,), {"forward": forward})()
    return model, copy.deepcopy(model)


class TestWhatATraceDoesNotShow:
    @pytest.mark.parametrize("forward", [at_the_mode_of_a_part, at_the_gradient_mode, at_a_global])
    def test_is_not_fused(self, forward):
        model, theirs = looking(forward)
        report = ft.convert_batch_norm(model)
        assert not report.fused
        assert report.unfused
        x = torch.randn(4, 3, 5, 5)
        torch.testing.assert_close(model(x), theirs(x))
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(x), theirs.eval()(x))
        assert model.training is model.norm.training is False

    @pytest.mark.parametrize(
        ("forward", "change"),
        [
            (at_a_function, lambda model: setattr(model, "act", torch.sigmoid)),
            (at_a_list, lambda model: model.kinds.__setitem__(0, "none")),
            (at_an_object, lambda model: setattr(model.config, "relu", False)),
            (at_a_function, lambda model: setattr(model.norm, "forward", torch.sigmoid)),
        ],
        ids=["function", "list", "object", "forward of a part"],
    )
    def test_brings_the_forward_back_when_it_changes(self, forward, change):
        model, theirs = looking(forward)
        assert ft.convert_batch_norm(model).fused == {"norm": "relu"}
        x = torch.randn(4, 3, 5, 5)
        torch.testing.assert_close(copy.deepcopy(model)(x), copy.deepcopy(theirs)(x))
        change(model)
        change(theirs)
        torch.testing.assert_close(model(x), theirs(x))

    def test_a_hook_on_all_modules_sees_what_it_saw(self):
        model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())
        ft.convert_batch_norm(model)
        seen = []
        handle = nn.modules.module.register_module_forward_hook(lambda module, _, y: seen.append((module, y.min())))
        model(torch.randn(4, 3, 5, 5))
        handle.remove()
        assert [module for module, _ in seen] == [*model, model]
        assert seen[0][1] < 0


def test_revert_of_a_layer_that_was_parametrized_changes_nothing():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    ft.convert_batch_norm(model)
    nn.utils.parametrize.register_parametrization(model[1], "weight", nn.Softplus())
    with pytest.raises(ValueError, match="model: '1' has become a ParametrizedBatchNorm2d since it was converted"):
        ft.revert(model)
    assert type(model[0]) is ft.BatchNorm2d


def test_a_forward_that_somebody_wrapped_survives_revert():
    model, theirs = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    ft.convert_batch_norm(model)
    inner = model.forward
    model.forward = lambda x: 2 * inner(x)
    ft.revert(model)
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(model(x), 2 * theirs(x))
