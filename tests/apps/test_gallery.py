"""What the figures claim, as numbers; that each can be drawn; the page and the command."""

import json
import math
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

import fusedstep as fs
from commands import run
from fusedstep.apps import gallery
from fusedstep.apps.cli import gallery as command
from fusedstep.apps.gallery import critical, drawing, losses, optimizers, ravine, schedules, write_index

FIGURES = list(gallery.FIGURES)
MOVING = ["optimizers", "ravine"]


@pytest.fixture(scope="module")
def computed():
    """Gives the data of a figure, computed once."""
    kept = {}

    def data(name):
        if name not in kept:
            kept[name] = gallery.FIGURES[name].compute(quick=True)
        return kept[name]

    return data


@pytest.fixture
def claims(computed, request):
    """Those of the figure that the class names."""
    return computed(request.cls.figure)["claims"]


def differences(function, point, step=1e-6):
    """The gradient of a function of two numbers."""
    moves = step * np.eye(2)
    return np.array([(function(point + m) - function(point - m)) / (2 * step) for m in moves])


@pytest.mark.parametrize(
    ("function", "gradient"),
    [
        (critical.wells, critical.wells_gradient),
        (critical.product, critical.product_gradient),
        (optimizers.ravine, optimizers.ravine_gradient),
        (optimizers.saddle, optimizers.saddle_gradient),
        (ravine.loss, ravine.gradient),
    ],
)
def test_gradients_are_those_of_the_losses(function, gradient, rng):
    for point in rng.uniform(-1.5, 1.5, (20, 2)):
        np.testing.assert_allclose(gradient(point), differences(function, point), rtol=1e-5, atol=1e-5)


class TestCritical:
    figure = "critical"

    def test_kinds(self, claims):
        """A sum of two double wells: minima where both are at one, a maximum where neither is, saddles between."""
        assert claims["kinds"] == {"minimum": 4, "maximum": 1, "saddle": 4}

    def test_notes_saddle(self, claims):
        assert claims["saddle_kind"] == "saddle"
        np.testing.assert_allclose(claims["saddle_eigenvalues"], [-2, 2], atol=1e-6)
        np.testing.assert_allclose(claims["way_out"], math.sqrt(0.5), atol=1e-6)

    def test_escape(self, claims):
        assert claims["loss_of_descent_from_the_saddle"] == claims["loss_at_saddle"] == 1
        assert claims["loss_after_escape"] < 0.5
        assert claims["loss_at_the_end"] < 1e-3


class TestBatches:
    figure = "batches"

    def test_all_reach_the_loss(self, claims):
        assert all(entry["train_loss"] <= claims["train_loss"] for entry in claims["batch_size"].values())

    def test_small_batches(self, claims):
        sizes = claims["batch_size"]
        small, large = sizes[min(sizes)], sizes[max(sizes)]
        assert max(sizes) == 1437, "all rows"
        assert large["noise"] < 1e-5 < 1 < small["noise"]
        assert small["epochs"] < large["epochs"] / 10
        assert small["sharpness"] < large["sharpness"] / 1.5

    def test_noise_falls_with_the_root_of_the_size(self, claims):
        """Of rows drawn without replacement: σ² / b · (n − b) / (n − 1)."""
        sizes = claims["batch_size"]
        first, second = sizes[8]["noise"], sizes[64]["noise"]
        expected = math.sqrt(64 / 8 * (1437 - 8) / (1437 - 64))
        assert first / second == pytest.approx(expected, rel=0.15)


class TestOptimizers:
    figure = "optimizers"

    def test_ravine(self, claims):
        steps = {name: entry["steps_to_a_thousandth"] or 1000 for name, entry in claims["ravine"].items()}
        assert all(steps[name] < steps["SGD"] / 2 for name in ("momentum", "Nesterov", "Adam"))

    def test_sgd_stays_below_the_bound(self, claims):
        """Beyond 2 / λ it would diverge."""
        assert 0 < claims["ravine"]["SGD"]["lr"] < 2 / 100

    def test_saddle(self, claims):
        steps = {name: entry["steps_to_leave"] for name, entry in claims["saddle"].items()}
        assert all(steps[name] < steps["SGD"] / 2 for name in steps if name != "SGD")
        # Gradient descent grows as y (1 + lr) per step, up to where y³ counts.
        alone = math.log(0.5 / 1e-3) / math.log(1.03)
        assert alone <= steps["SGD"] <= 1.1 * alone


class TestRavine:
    figure = "ravine"

    def test_too_large_bounces(self, claims):
        """Between the walls at ±y with 2y = lr · slope, for the slope is all but constant there."""
        slope = 200
        assert claims["large"]["last_distance_across"] == pytest.approx(0.01 * slope / 2, rel=1e-3)
        assert claims["large"]["last_distance_along"] < 0.1

    def test_too_small_never_arrives(self, claims):
        small = claims["small"]
        assert small["last_distance_across"] < 0.02
        assert small["last_distance_along"] == pytest.approx(40 * math.exp(-0.01), rel=1e-4)

    def test_adagrad_explodes_and_decay_cures_it(self, claims):
        thrown = claims["adagrad"]["largest_distance_across_after_the_floor"]
        cured = claims["decayed"]["largest_distance_across_after_the_floor"]
        assert thrown > 0.2
        assert cured < 2e-3
        assert claims["adagrad"]["step_of_that"] > 100
        assert claims["adagrad"]["last_distance_along"] < 0.1, "it arrives none the less"
        assert claims["decayed"]["last_loss"] < 1e-6 < claims["adagrad"]["last_loss"]

    def test_warm_up(self, claims):
        """σ² = (1 − α) g² at the first step: 10 times the rate, with α = 0.99."""
        assert claims["rmsprop"]["largest_step_across"] == pytest.approx(10 * 0.2, rel=1e-6)
        assert claims["warmed"]["largest_step_across"] < 0.4 * claims["rmsprop"]["largest_step_across"]
        assert claims["warmed"]["last_loss"] < 1e-3 < claims["rmsprop"]["last_loss"]


class TestSchedules:
    figure = "schedules"

    def test_all_are_there(self, claims):
        others = {"Schedule", "plot"}
        assert set(claims) == set(fs.schedules.__all__) - others

    def test_courses(self, claims):
        assert claims["constant"]["first"] == claims["constant"]["last"] == 1
        assert claims["step_decay"]["last"] == 0.5**4
        assert claims["exponential"]["last"] == pytest.approx(0.02)
        for name in ("linear", "cosine", "polynomial", "warmup_stable_decay"):
            assert claims[name]["last"] == pytest.approx(0, abs=1e-12), name
        for name in ("inverse_sqrt", "transformer", "one_cycle", "warmup", "warmup_stable_decay"):
            assert claims[name]["highest_at"] > 0, name
        assert claims["scale"]["highest"] == 0.5

    def test_plateau(self, computed):
        rates, steps = computed("schedules")["rates"]["ReduceOnPlateau"], schedules._STEPS
        falls = np.flatnonzero(np.diff(rates) < 0) * 5 // steps
        assert set(falls.tolist()) == {1, 3}, "in the fifths where the metric stands still"


class TestLosses:
    figure = "losses"

    def test_gradients_far_from_the_goal(self, claims):
        """At logits (−10, 10): p₁ = σ(−20); √2 (1 − p₁) against √2 · 2 · 2 p₁ (1 − p₁)² / 3 classes."""
        p = 1 / (1 + math.exp(20))
        far = claims["gradient_norm_far_from_the_goal"]
        assert far["cross-entropy"] == pytest.approx(math.sqrt(2) * (1 - p), rel=1e-6)
        assert far["square error"] == pytest.approx(math.sqrt(2) * 4 * p * (1 - p) ** 2 / 3, rel=1e-5)

    def test_square_error_by_differences(self, rng):
        for z in rng.uniform(-3, 3, (5, 2)):
            found = losses.square_error(losses.logits(*z))[1][0, :2]
            np.testing.assert_allclose(
                found, differences(lambda at: losses.square_error(losses.logits(*at))[0][0], z), atol=1e-8
            )

    def test_descent(self, claims):
        after = claims["loss_after_descent"]
        assert after["cross-entropy"]["last"] < 0.05 < 10 < after["cross-entropy"]["first"]
        assert after["square error"]["last"] == pytest.approx(2 / 3, rel=1e-6), "two of three squares are 1"
        assert claims["cross_entropy_of_0.8"] == pytest.approx(0.2231, abs=5e-5)


class TestBatchNorm:
    figure = "batch-norm"

    def test_larger_rates(self, claims):
        without, normalized = claims["without batch norm"], claims["with batch norm"]
        assert normalized["fails_from_lr"] >= 4 * without["fails_from_lr"]
        assert normalized["largest_good_lr"] >= 3 * without["largest_good_lr"]
        assert normalized["best_accuracy"] > without["best_accuracy"]


class TestRegularization:
    figure = "regularization"

    def test_overfitting(self, claims):
        plain = claims["no regularization"]
        assert plain["last_loss"] > 1.1 * plain["lowest_loss"]
        assert plain["lowest_loss_at_epoch"] < 0.7 * claims["epochs"]

    def test_each_helps(self, claims):
        plain = claims["no regularization"]
        assert claims["dropout 0.5"]["last_loss"] < 0.9 * plain["last_loss"]
        assert claims["mixup"]["last_loss"] < 0.97 * plain["last_loss"]
        assert plain["stopped"]["loss"] < 0.95 * plain["last_loss"]
        assert plain["stopped"]["accuracy"] > plain["last_accuracy"] + 0.03


class TestAveraging:
    figure = "averaging"

    def test_averages(self, claims):
        loss = claims["loss_in_the_last_quarter"]
        assert loss["SWA"] < 0.9 * loss["last iterate"]
        assert loss["EMA"] < 0.9 * loss["last iterate"]

    def test_ensemble(self, claims):
        """By Jensen's inequality at most the mean of its members."""
        assert claims["ensemble"] < 0.97 * claims["mean_snapshot"]
        assert claims["ensemble"] < claims["last_snapshot"]


class TestSpectrum:
    figure = "spectrum"

    def test_both_signs(self, claims):
        assert max(claims["smallest_eigenvalue"]) < 0 < min(claims["largest_eigenvalue"])
        assert claims["training_loss"][-1] < 0.1 * claims["training_loss"][0]

    def test_negative_curvature_fades(self, claims):
        bottom = np.abs(claims["smallest_eigenvalue"])
        assert bottom[-1] < bottom[0] / 2

    def test_most_are_near_zero(self, claims):
        parts = claims["part_within_a_hundredth"]
        assert parts[max(parts)] > 0.8


class TestDoctor:
    figure = "doctor"

    def test_right(self, claims):
        assert claims["of"] == len(claims["runs"]) >= 7
        assert claims["right"] >= claims["of"] - 1
        assert {"run": claims["runs"][-1]["run"], "expected": "healthy", "said": ["healthy"]} == claims["runs"][-1]


def texts_of(figure):
    from matplotlib.text import Text

    return [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


@pytest.mark.parametrize("name", FIGURES)
def test_figures(computed, name):
    """Drawn without a warning, no wider than a page, in letters that can be read; a caption of a few sentences."""
    from matplotlib import rc_context

    data = computed(name)
    with rc_context(gallery.looks.SETTINGS):
        figure = gallery.FIGURES[name].draw(data)
        figure.draw_without_rendering()
    assert figure.get_size_inches()[0] <= 7
    assert min(text.get_fontsize() for text in texts_of(figure)) >= 8
    caption = gallery.FIGURES[name].caption(data)
    assert 1 <= len(re.findall(r"\.(?: |$)", caption)) <= 7
    assert "nan" not in caption
    assert "None" not in caption
    json.dumps(drawing.plain_claims(data["claims"]), allow_nan=False)


def test_quick_and_seed_change_the_numbers():
    first, second = (gallery.FIGURES["averaging"].compute(seed, quick=True)["claims"] for seed in (0, 1))
    assert first["ensemble"] != second["ensemble"]
    assert ravine.compute(quick=False)["claims"]["small"]["steps"] == 100_000


class Links(HTMLParser):
    """Where a page leads to, what it shows, and its own places."""

    def __init__(self, page):
        super().__init__()
        self.links, self.ids, self.text = [], [], ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("href", "src")]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_data(self, data):
        self.text += data


def check_page(folder, names):
    page = Links((folder / "index.html").read_text(encoding="utf-8"))
    assert page.ids == names
    for link in page.links:
        assert link[1:] in page.ids if link.startswith("#") else (folder / link).is_file(), link
    for name in names:
        entry = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        assert " ".join(entry["caption"].split()) in " ".join(page.text.split())
        assert f"{name}.svg" in page.links
        assert (folder / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    return page


class TestFiles:
    def test_same_numbers_same_file(self, tmp_path):
        for folder in (tmp_path / "a", tmp_path / "b"):
            folder.mkdir()
            gallery.write("critical", critical, folder)
        for suffix in ("svg", "png", "json"):
            assert (tmp_path / f"a/critical.{suffix}").read_bytes() == (tmp_path / f"b/critical.{suffix}").read_bytes()

    def test_same_numbers_on_the_reference(self, computed):
        with fs.runtime.use_isa("numpy"):
            assert optimizers.compute(quick=True)["claims"] == computed("optimizers")["claims"]

    @pytest.mark.parametrize("name", MOVING)
    def test_animation(self, computed, name, tmp_path, monkeypatch):
        from PIL import Image

        module, film = gallery.FIGURES[name], gallery.FIGURES[name].film
        monkeypatch.setattr(module, "film", lambda *given: film(*given, frames=3, rate=2))
        monkeypatch.setattr(module, "compute", lambda quick: computed(name))
        assert gallery.write(name, module, tmp_path, animate=True)["animated"]
        page = write_index(tmp_path, FIGURES)
        assert f"{name}.gif" in check_page(tmp_path, [name]).links
        assert page == tmp_path / "index.html"
        with Image.open(tmp_path / f"{name}.gif") as gif:
            assert gif.n_frames >= 3
            first = np.asarray(gif.convert("RGB"))
            gif.seek(gif.n_frames - 1)
            assert (first != np.asarray(gif.convert("RGB"))).any()

    def test_those_that_do_not_move(self, tmp_path):
        assert not gallery.write("schedules", schedules, tmp_path, animate=True)["animated"]
        assert not (tmp_path / "schedules.gif").exists()

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"title": 1, "caption": "", "animated": false}', '"text"'])
    def test_a_strange_file(self, tmp_path, content):
        (tmp_path / "critical.json").write_text(content)
        with pytest.raises(ValueError, match=r"critical\.json: not what the gallery writes"):
            write_index(tmp_path, FIGURES)
        assert not (tmp_path / "index.html").exists()

    def test_text_is_escaped(self, tmp_path):
        entry = {"title": "a < b", "caption": "<script>", "animated": False}
        (tmp_path / "critical.json").write_text(json.dumps(entry))
        page = write_index(tmp_path, FIGURES).read_text(encoding="utf-8")
        assert "<script>" not in page
        assert "a &lt; b" in page

    def test_claims_that_are_no_numbers_of_json(self):
        given = {"a": np.float32(0.5), 2: [math.inf, (math.nan, np.arange(2))], "b": None, "c": np.array([1.0, np.inf])}
        assert drawing.plain_claims(given) == {"a": 0.5, "2": [None, [None, [0, 1]]], "b": None, "c": [1.0, None]}


class TestCommand:
    def test_list(self, capsys):
        status, out, _ = run(capsys, "gallery", "--list")
        assert status == 0
        assert [line.split()[0] for line in out.splitlines()] == FIGURES

    def test_figures_page_and_numbers(self, capsys, tmp_path):
        folder, numbers = tmp_path / "new" / "gallery", tmp_path / "numbers.json"
        status, out, _ = run(capsys, "gallery", "losses", "critical", "--out", str(folder), "--json", str(numbers))
        assert status == 0
        assert out.splitlines() == ["1/2  critical", "2/2  losses", str(folder / "index.html")]
        check_page(folder, ["critical", "losses"])
        written = json.loads(numbers.read_text())
        assert [entry["name"] for entry in written["figures"]] == ["critical", "losses"]
        assert written["figures"][0] == json.loads((folder / "critical.json").read_text())

        status, out, err = run(capsys, "gallery", "schedules", "--out", str(folder), "--json", "-", "--threads", "2")
        assert status == 0
        assert json.loads(out)["figures"][0]["claims"]["cosine"]["first"] == 1
        assert "1/1  schedules" in err
        check_page(folder, ["critical", "schedules", "losses"])

    def test_quick_is_passed_on(self, capsys, tmp_path, monkeypatch):
        asked = []
        monkeypatch.setattr(
            gallery, "write", lambda name, figure, folder, **options: asked.append((name, options)) or {}
        )
        assert run(capsys, "gallery", "--out", str(tmp_path), "--quick")[0] == 0
        assert run(capsys, "gallery", "ravine", "--out", str(tmp_path), "--animate")[0] == 0
        assert asked[:-1] == [(name, {"quick": True, "animate": False}) for name in FIGURES]
        assert asked[-1] == ("ravine", {"quick": False, "animate": True})

    def test_interrupted(self, capsys, tmp_path, monkeypatch):
        def interrupt(**options):
            raise KeyboardInterrupt

        monkeypatch.setattr(losses, "compute", interrupt)
        numbers = tmp_path / "numbers.json"
        status, out, _ = run(
            capsys, "gallery", "critical", "losses", "schedules", "--out", str(tmp_path), "--json", str(numbers)
        )
        assert status == 130
        assert "interrupted after 2 of 3 figures" in out
        check_page(tmp_path, ["critical", "schedules"])
        assert len(json.loads(numbers.read_text())["figures"]) == 2

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["monet", "--out", "new"], "NAME: expected one of critical, batches, .*, got 'monet'"),
            (["critical"], "--out: expected a folder"),
            (["critical", "--out", "file"], "--out: cannot write to a folder 'file'"),
            (["critical", "--out", "file/below"], "--out: cannot write to a folder 'file/below'"),
            (["critical", "--out", ""], "--out: cannot write to a folder ''"),
            (["critical", "--out", "new", "--json", "missing/x.json"], "--json: cannot write 'missing/x.json'"),
            (["critical", "--out", "new", "--isa", "mmx"], "mmx"),
        ],
    )
    def test_errors(self, capsys, tmp_path, monkeypatch, arguments, message):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "file").write_text("")
        status, out, err = run(capsys, "gallery", *arguments)
        assert status == 2
        assert out == ""
        assert re.search(f"fusedstep gallery: error: .*{message}", err)
        assert not list(tmp_path.rglob("*.svg"))

    @pytest.mark.parametrize("module", ["matplotlib", "rich", "scipy", "sklearn"])
    def test_missing_packages(self, capsys, tmp_path, monkeypatch, module):
        monkeypatch.setitem(sys.modules, module, None)
        status, _, err = run(capsys, "gallery", "critical", "--out", str(tmp_path / "new"))
        assert status == 2
        assert f"{module} is not installed: pip install 'fusedstep[gallery]'" in err
        assert not (tmp_path / "new").exists()

    def test_progress_on_a_terminal(self, capsys, monkeypatch):
        from rich.console import Console

        monkeypatch.setattr(Console, "is_terminal", property(lambda self: True))
        with command.Progress(2, quiet=False) as progress:
            progress.begin("ravine")
            progress.bar.refresh()
            progress.done("ravine")
        out = capsys.readouterr().out
        assert "ravine" in out
        assert "1/2" in out
