"""Each figure draws the numbers that it is given, and says them in its title: artists are read, never pixels."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from mirlib import plots


@pytest.fixture(autouse=True)
def _headless():
    with mpl.rc_context({"backend": "agg"}):
        yield
    plt.close("all")


def lines(ax, label):
    """The (x, y) data of the line with this label."""
    (line,) = [line for line in ax.get_lines() if line.get_label() == label]
    return line.get_data()


def test_figure_quantile_matching_joins_equal_quantiles_and_states_the_cost():
    ax = plots.figure_quantile_matching((3.0, 2.0), (0.0, 1.0), pairs=3)
    middle = ax.get_lines()[3].get_xdata()  # after the two outlines and the first pair: the medians
    np.testing.assert_allclose(middle, [3.0, 0.0], atol=1e-12)
    assert "costs 10.0" in ax.get_title()


def test_figure_clouds_draws_its_points_and_arrows():
    vision, text = np.arange(8.0).reshape(4, 2), np.ones((3, 2))
    ax = plots.figure_clouds(vision, text, arrows=np.array([[[0.0, 0.0], [2.0, 5.0]]]))
    offsets = {c.get_label(): c.get_offsets() for c in ax.collections if c.get_label() in ("vision", "text")}
    np.testing.assert_array_equal(offsets["vision"], vision)
    np.testing.assert_array_equal(offsets["text"], text)
    (quiver,) = [c for c in ax.collections if isinstance(c, mpl.quiver.Quiver)]
    assert (quiver.U[0], quiver.V[0]) == (2.0, 5.0)


def test_figure_sampling_bias_draws_the_mean_over_seeds_and_its_slope():
    rows = np.array([10, 100, 1000])
    values = np.array([[2.0, 0.2, 0.02], [4.0, 0.4, 0.04]])
    ax = plots.figure_sampling_bias(rows, {8: values}, {8: values[0]})
    np.testing.assert_allclose(lines(ax, "8 dimensions")[1], [3.0, 0.3, 0.03])
    np.testing.assert_allclose(lines(ax, "first-order bias")[1], values[0])
    assert "n to the −1.00" in ax.get_title()


def test_figure_cancellation_names_the_first_offset_without_a_right_digit():
    errors = {"subtracting": np.array([[1e-3, 2.0, 30.0]] * 3), "merging": np.array([[1e-7, 1e-7, 0.0]] * 3)}
    storing = {"storing": np.array([[0.0, 1e-9, 1e-6], [0.0, 3e-9, 2e-6], [0.0, 2e-9, 3e-6]])}
    ax = plots.figure_cancellation(np.array([1.0, 1000.0, 1e6]), errors, storing=storing)
    np.testing.assert_allclose(lines(ax, "storing")[1][1:], [2e-9, 2e-6])
    np.testing.assert_allclose(lines(ax, "subtracting")[1], [1e-3, 2.0, 30.0])
    assert (lines(ax, "merging")[1] > 0).all(), "an error of 0 stays on a logarithmic axis"
    assert ax.get_title().startswith("Subtracting: no digit is right from an offset of 1,000 ")


def test_figure_norms_counts_from_the_embeddings_if_asked():
    norms = {"vision": [np.full(5, 4.0), np.arange(5.0)], "text": [np.ones(5), np.ones(5)]}
    ax = plots.figure_norms(norms, first_layer=0)
    np.testing.assert_array_equal(lines(ax, "vision tokens"), [[0, 1], [4.0, 2.0]])
    assert "enters layer 1" in ax.get_xlabel()


def test_figure_lvlm_says_how_large_each_part_is():
    counts = {"vision encoder": 40, "projector": 10, "language model": 50}
    ax = plots.figure_lvlm({"layers": 7, "vision_tokens": 36, "encoder_dim": 8, "dim": 16, "parameters": counts})
    said = " ".join(text.get_text() for text in ax.texts)
    assert "layer K = 7" in said and "36 vision tokens" in said and "projector\n10 weights" in said


def test_figure_pictures_shows_each_picture_in_the_line_of_its_kind():
    black, white = np.zeros((10, 20, 3), np.uint8), np.full((30, 30, 3), 255, np.uint8)
    ax = plots.figure_pictures({"dark": [black, black], "light": [white, white]})
    assert [label.get_text() for label in ax.get_yticklabels()] == ["dark", "light"]
    brightness = [image.get_array().mean() for image in ax.get_images()]
    assert brightness == [0, 0, 255, 255]


def test_figure_token_map_draws_every_token_in_a_shade_of_its_modality():
    points = {
        "vision": {"a": np.zeros((3, 2)), "b": np.ones((2, 2))},
        "text": {"c": np.full((4, 2), 5.0)},
    }
    ax = plots.figure_token_map(points)
    sizes = {c.get_label(): len(c.get_offsets()) for c in ax.collections}
    assert sizes == {"a": 3, "b": 2, "c": 4}
    colours = {c.get_label(): c.get_edgecolor()[0][:3] for c in ax.collections}
    red, green, blue = colours["b"]
    assert red > blue and colours["c"][2] > colours["c"][0], "vision is warm, text is cool"


def test_figure_layer_curves_draws_means_and_the_whole_range():
    ax = plots.figure_layer_curves({"gap": np.array([[1.0, 2.0], [3.0, 6.0]])}, "gap (units)", first_layer=0)
    np.testing.assert_array_equal(lines(ax, "gap"), [[0, 1], [2.0, 4.0]])
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (1.0, 6.0)


def test_figure_kind_distances_compares_the_blocks():
    distances = np.array([[0.0, 2.0, 7.0], [2.0, 0.0, 9.0], [7.0, 9.0, 0.0]])
    ax = plots.figure_kind_distances(distances, {"vision": ["photo", "scan"], "text": ["news"]})
    assert ax.get_title() == "Between modalities at least 7, within one at most 2"
    assert [text.get_text() for text in ax.texts[:3]] == ["0", "2", "7"]


def test_figure_sample_size_draws_each_draw_and_says_the_spreads():
    ax = plots.figure_sample_size({10: [3.0, 3.5], 100: [3.2, 3.2, 3.5]}, enough=20)
    np.testing.assert_allclose(lines(ax, "mean ± one standard deviation"), [[10, 100], [3.25, 3.3]])
    assert ax.get_title() == "Standard deviation of a draw: 0.354 at 10 samples, 0.173 at 100"
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([band.min(), band.max()], [3.25 - 0.125**0.5, 3.25 + 0.125**0.5])
    np.testing.assert_array_equal(lines(ax, "20 samples")[0], [20, 20])


def test_figure_fast_mode_names_the_layer_that_is_most_wrong():
    exact, fast, without = np.array([10.0, 1.0, 0.1]), np.array([11.0, 2.0, 2.7]), np.array([11.0, 2.1, 2.6])
    ax = plots.figure_fast_mode(exact, fast, without, "a set")
    for label, values in (("exact", exact), ("fast mode", fast), ("root left out", without)):
        np.testing.assert_array_equal(lines(ax, label), ([1, 2, 3], values))
    assert ax.get_title() == "a set: layer 3 is 27× too large"


def test_figure_growing_error_draws_the_predicted_growth_through_the_last_small_error():
    ax = plots.figure_growing_error({"a": np.array([0.0, 1e-5, 1e-3, 3.0])}, {"a": 50.0})
    np.testing.assert_array_equal(lines(ax, "a")[1], [np.nan, 1e-5, 1e-3, 3.0])
    np.testing.assert_allclose(lines(ax, "predicted growth"), ([2, 3, 4], [2e-5, 1e-3, 5e-2]))
    assert "50-fold" in ax.get_title()


def test_figure_noise_spread_draws_every_draw_and_the_largest_in_the_title():
    changes = {"fast": np.array([[0.0, 0.02], [2e-6, 0.15]]), "exact": np.full((2, 2), 1e-6)}
    ax = plots.figure_noise_spread(changes, 1e-6, "a set")
    np.testing.assert_array_equal(lines(ax, "fast")[1], [1e-9, 0.02, 2e-6, 0.15])
    assert ax.get_title() == "a set, fast: the noise moves layer 2 by up to 15%"


def test_figure_convergence_counts_the_steps_of_those_that_arrive():
    curves = {"good": np.array([1.0, 1e-3, 1e-12]), "better": np.array([1.0, 0.0, 0.0]), "bad": np.ones(3)}
    ax = plots.figure_convergence(curves)
    np.testing.assert_array_equal(lines(ax, "good")[1], curves["good"])
    assert (lines(ax, "better")[1] > 0).all(), "an error of 0 stays on a logarithmic axis"
    assert ax.get_title() == "2 of 3 iterations reach an error of 1e-10, in 1 to 2 steps"


def test_figure_bias_by_rows_draws_means_and_counts_where_the_formula_holds():
    rows = np.array([10, 1000])
    ax = plots.figure_bias_by_rows(rows, {"a": np.array([[3.0, 0.02], [5.0, 0.02]])}, {"a": np.array([3.9, 0.021])})
    (points,) = ax.containers
    np.testing.assert_allclose(points.lines[0].get_ydata(), [4.0, 0.02])
    np.testing.assert_array_equal(lines(ax, "formula")[1], [3.9, 0.021])
    assert ax.get_title() == "The formula lies inside the 95 % interval of 1 of 2 points"


def test_figure_extrapolation_meets_the_truth_of_an_exact_line():
    rows = np.array([100, 200, 400])
    distances = np.array([2 + 50 / rows, 2 + 30 / rows])
    ax = plots.figure_extrapolation(rows, distances, truth=2.0)
    np.testing.assert_allclose(lines(ax, "FD∞, mean")[1], [2.0])
    np.testing.assert_allclose(ax.containers[0].lines[0].get_ydata(), 2 + 40 / rows)
    assert ax.get_title().startswith("The straight line turns an error of +0.100 at 400 rows into ")


def test_figure_vision_scale_draws_mir_between_its_bounds_and_marks_the_lowest():
    factors, values = np.array([0.5, 1.0, 2.0]), np.array([0.3, 0.2, 0.6])
    baselines = {"lower": values - 1, "upper": values + 1, "norm_only": values + 0.1, "zeroed_rows": 0.5}
    ax = plots.figure_vision_scale(factors, values, baselines, (0.9, 0.15), measured=(factors[:2], values[:2]))
    np.testing.assert_allclose(lines(ax, "MIR")[1], values)
    np.testing.assert_allclose(lines(ax, "vision rows zeroed")[1], 0.5)
    np.testing.assert_allclose(lines(ax, "MIR, measured"), (factors[:2], values[:2]))
    assert lines(ax, "lowest MIR") == ([0.9], [0.15])
    assert "c = 0.90" in ax.get_title()


def test_figure_training_draws_loss_and_mir_on_their_own_axes():
    ax = plots.figure_training({"losses": [4.0, 2.0, 1.0], "mir": {1: 0.5, 3: 0.75}, "zeroed_rows": 0.9})
    np.testing.assert_array_equal(lines(ax, "loss (left)"), [[1, 2, 3], [4.0, 2.0, 1.0]])
    right = ax.figure.axes[-1]
    np.testing.assert_array_equal(lines(right, "MIR (right)"), [[1, 3], [0.5, 0.75]])
    assert lines(right, "vision rows zeroed (right)")[1][0] == 0.9
    assert ax.get_title() == "Step 3: loss 4.00 → 1.00, MIR 0.50 → 0.75"
    alone = plots.figure_training({"losses": [4.0], "mir": {}, "zeroed_rows": None})
    assert alone.figure.axes == [alone]


def test_figure_accuracy_by_kind_counts_the_kinds_whose_intervals_are_apart():
    seen = {"exist": (0.9, 100), "shape_at": (0.3, 100)}
    ax = plots.figure_accuracy_by_kind({"own picture": seen, "blind": {"exist": (0.5, 100), "shape_at": (0.25, 100)}})
    drawn = {c.get_label(): c.lines[0].get_ydata().tolist() for c in ax.containers}
    assert drawn == {"own picture": [0.9, 0.3], "blind": [0.5, 0.25]}
    assert "in 1 of 2 kinds" in ax.get_title()


def test_wilson_interval_is_that_of_the_books():
    low, high = plots.wilson_interval(np.array([0.5, 0.0]), np.array([100, 10]))
    np.testing.assert_allclose(low, [0.4038, 0.0], atol=1e-4)
    np.testing.assert_allclose(high, [0.5962, 0.2775], atol=1e-4)


def test_figure_documents_keeps_documents_apart():
    ax = plots.figure_documents(np.array([0, 1, 2, 0, 1]))
    (image,) = ax.get_images()
    want = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    np.testing.assert_array_equal(image.get_array().astype(int), want)
    assert ax.get_title().startswith("2 documents in one row: 36%")


def test_figure_copying_draws_the_mean_loss_and_states_both_halves():
    ax = plots.figure_copying(np.array([[6.0, 8.0, 1.0, 0.0], [8.0, 6.0, 0.0, 1.0]]))
    np.testing.assert_array_equal(lines(ax, "mean of 2 strings")[1], [7.0, 7.0, 0.5, 0.5])
    assert "7.0 nats a token; the same again, 0.50" in ax.get_title()
    guessed = plots.figure_copying(np.ones((2, 4)), guess=1.5)
    assert list(lines(guessed, "a blind guess")[1]) == [1.5, 1.5]
    assert not [line for line in ax.get_lines() if line.get_label() == "a blind guess"]


def test_word_weights_are_the_bars():
    weights = {"CAL": np.array([1.0, 5.0, 2.0]), "PRIOR": np.array([0.2, 0.8, 2.0])}
    ax = plots.figure_word_weights(["red", "circle", "."], weights)
    bars = [[bar.get_height() for bar in container] for container in ax.containers]
    assert bars == [[1.0, 5.0, 2.0], [0.2, 0.8, 2.0]]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["red", "circle", "."]
    assert ax.get_title() == "Most weight, CAL: circle, PRIOR: ."


def test_memory_compares_the_second_halves_with_the_truth():
    ax = plots.figure_memory({"alone": [9.0, 9.0, 3.0, 3.0], "past": [9.0, 5.0, 1.5, 1.5]}, truth=1.0)
    assert [list(line.get_ydata()) for line in ax.lines[:2]] == [[9.0, 9.0, 3.0, 3.0], [9.0, 5.0, 1.5, 1.5]]
    assert list(ax.lines[0].get_xdata()) == [1, 2, 3, 4]
    assert ax.get_title() == "Off by: alone 2, past 0.5"


def test_attention_is_white_only_where_it_is_zero():
    weights = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1e-6, 0.5, 0.5]])
    ax = plots.figure_attention(weights, np.array([False, True, True]), name="causal")
    pixels = np.asarray(ax.get_images()[0].get_array())
    np.testing.assert_array_equal((pixels == 1).all(axis=-1), weights == 0)
    warm, cool = (np.array(mpl.colors.to_rgb(each)) for each in (plots.VISION, plots.TEXT))
    np.testing.assert_allclose(pixels[0, 0], cool)
    np.testing.assert_allclose(pixels[1, 1], warm)
    assert ax.get_title() == "causal: 67% of the pairs"
    assert [line.get_ydata()[0] for line in ax.lines[::2]] == [0.5]
