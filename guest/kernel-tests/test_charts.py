"""Charts of the Python kernel, as the acceptance list of the code interpreter requires them."""

import datetime

import pytest


@pytest.fixture(scope="module", autouse=True)
def libraries(python):
    python.run("import matplotlib.pyplot as plt, numpy as np, datetime")


def chart_of(python, code):
    outcome = python.run(f"{code}\nplt.show()")
    assert not outcome.errors, outcome.errors
    (figure,) = outcome.displays
    assert set(figure) == {"text/plain", "image/png", "e2b/chart"}
    return figure["e2b/chart"]


def test_bar(python):
    chart = chart_of(
        python,
        """
plt.bar(['A', 'B'], [100, 200], label='Books sold')
plt.bar(['A', 'B'], [50, 90], bottom=[100, 200], label='Books rented')
plt.xlabel('Authors'); plt.ylabel('Books'); plt.title('Books by authors'); plt.legend()""",
    )
    assert (chart["type"], chart["title"]) == ("bar", "Books by authors")
    assert (chart["x_label"], chart["y_label"]) == ("Authors", "Books")
    assert (chart["x_unit"], chart["y_unit"]) == (None, None)
    elements = [(element["label"], element["value"], element["group"]) for element in chart["elements"]]
    assert elements == [
        ("A", 100, "Books sold"),
        ("B", 200, "Books sold"),
        ("A", 50, "Books rented"),
        ("B", 90, "Books rented"),
    ]


def test_box_and_whisker(python):
    chart = chart_of(
        python,
        """
data = [[70, 75, 80, 85, 90], [76, 85, 86, 87, 88, 89], [90, 91, 92, 93, 94]]
plt.boxplot(data, tick_labels=['A', 'B', 'C'], patch_artist=True)
plt.xlabel('Class'); plt.ylabel('Score'); plt.title('Scores')""",
    )
    assert (chart["type"], chart["x_label"], chart["y_label"]) == ("box_and_whisker", "Class", "Score")
    assert [element["label"] for element in chart["elements"]] == ["A", "B", "C"]
    assert [element["outliers"] for element in chart["elements"]] == [[], [76], []]
    first = chart["elements"][0]
    names = ("min", "first_quartile", "median", "third_quartile", "max")
    assert [first[name] for name in names] == [70, 75, 80, 85, 90]


def test_line_with_dates(python):
    chart = chart_of(
        python,
        """
dates = [datetime.date(2023, 9, 1) + datetime.timedelta(days=day) for day in range(100)]
x = np.linspace(0, 2 * np.pi, 100)
plt.plot(dates, np.sin(x), label='sin'); plt.plot(dates, np.cos(x), label='cos')
plt.xlabel('Time (s)'); plt.ylabel('Frequency (Hz)'); plt.title('Waves'); plt.legend()""",
    )
    assert (chart["type"], chart["x_unit"], chart["y_unit"]) == ("line", "s", "Hz")
    assert (chart["x_scale"], chart["y_scale"]) == ("datetime", "linear")
    assert all(datetime.datetime.fromisoformat(tick) for tick in chart["x_ticks"])
    assert all(isinstance(tick, float) for tick in chart["y_ticks"])
    assert all(isinstance(label, str) for label in chart["x_tick_labels"] + chart["y_tick_labels"])
    assert [len(element["points"]) for element in chart["elements"]] == [100, 100]
    x, y = chart["elements"][0]["points"][0]
    assert (x, y) == ("2023-09-01", 0.0)


def test_logarithmic_axis(python):
    chart = chart_of(python, "plt.plot([1, 2, 3], [1, 100, 1000]); plt.yscale('log'); plt.ylabel('Y (log scale)')")
    assert (chart["y_scale"], chart["y_unit"]) == ("log", "log scale")


def test_pie(python):
    chart = chart_of(python, "plt.pie([90, 10], labels=['large', 'small'], startangle=90); plt.title('Shares')")
    elements = [(element["label"], element["angle"], element["radius"]) for element in chart["elements"]]
    assert (chart["type"], elements) == ("pie", [("large", 324, 1), ("small", 36, 1)])


def test_scatter(python):
    chart = chart_of(python, "plt.scatter(range(5), range(5), label='few'); plt.scatter(range(10), range(10), label='many')")
    assert (chart["type"], chart["title"]) == ("scatter", None)
    assert [(element["label"], len(element["points"])) for element in chart["elements"]] == [("few", 5), ("many", 10)]


def test_two_axes(python):
    chart = chart_of(
        python,
        """
figure, (left, right) = plt.subplots(1, 2)
figure.suptitle('Both'); left.plot([1, 2], [3, 4]); right.bar(['a'], [1])""",
    )
    assert (chart["type"], chart["title"]) == ("superchart", "Both")
    assert [element["type"] for element in chart["elements"]] == ["line", "bar"]


def test_categorical_axis(python):
    assert chart_of(python, "plt.plot([1, 2, 3], ['low', 'mid', 'high'])")["y_scale"] == "categorical"


def test_shapes_are_unknown(python):
    chart = chart_of(
        python,
        """
figure, axes = plt.subplots(); axes.set_title('Shapes')
axes.add_artist(plt.Circle((0.2, 0.2), 0.1)); axes.add_artist(plt.Circle((0.5, 0.5), 0.1))""",
    )
    assert (chart["type"], chart["title"], chart["elements"]) == ("unknown", "Shapes", [])


def test_a_blank_figure_has_no_content(python):
    (figure,) = python.run("plt.figure(); plt.show()").displays
    assert set(figure) == {"text/plain", "e2b/chart"}
    assert figure["e2b/chart"] == {}


def test_a_missing_value_is_null(python):
    chart = chart_of(python, "plt.plot([1, 2, 3], [1, float('nan'), float('inf')])")
    assert chart["elements"][0]["points"] == [[1.0, 1.0], [2.0, None], [3.0, None]]


def test_a_failing_extraction_is_an_empty_chart(python):
    code = "line, = plt.plot([1, 2]); line.get_label = lambda: 1/0; plt.legend = None\nplt.gcf()"
    outcome = python.run(code)
    assert not outcome.errors
    assert outcome.result["e2b/chart"] == {}
