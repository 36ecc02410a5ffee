"""Charts of matplotlib as data, parsed by the synchronous and the asynchronous SDK."""

import json
from datetime import datetime

import pytest
from e2b_code_interpreter.charts import ChartType, ScaleType

from interpreter.sdks import output

pytestmark = pytest.mark.timeout(180)


async def chart(sandbox, code: str):
    """Runs code that draws into `ax` of `fig`, and returns the chart that is shown."""
    head = "import matplotlib.pyplot as plt\nimport numpy as np\nplt.close('all')\nfig, ax = plt.subplots()\n"
    execution = await sandbox.run_code(f"{head}{code}\nplt.show()")
    output(execution)
    assert execution.results[0].chart, execution.results
    return execution.results[0].chart


# interpreter: G1
async def test_bar(shared):
    bar = await chart(shared, """
ax.bar(["Ann", "Bo", "Cy", "Di"], [100, 200, 300, 400], label="Books sold")
ax.set(xlabel="Authors", ylabel="Number of books sold", title="Book sales by author")
ax.legend()""")
    assert (bar.type, bar.title) == (ChartType.BAR, "Book sales by author")
    assert (bar.x_label, bar.y_label, bar.x_unit, bar.y_unit) == ("Authors", "Number of books sold", None, None)
    assert [(part.label, part.value, part.group) for part in bar.elements] == [
        (name, value, "Books sold") for name, value in [("Ann", 100), ("Bo", 200), ("Cy", 300), ("Di", 400)]
    ]


# interpreter: G2
@pytest.mark.parametrize("orientation", ["vertical", "horizontal"])
async def test_box(shared, orientation):
    vertical = orientation == "vertical"
    axes = ("Class", "Score") if vertical else ("Score", "Class")
    box = await chart(shared, f"""
data = [[85, 90, 78, 92, 88], [40, 44, 46, 50, 52, 54, 76], [80, 84, 88, 94, 99]]
ax.boxplot(data, orientation="{orientation}", patch_artist=True)
{'ax.set_xticklabels(["A", "B", "C"])' if vertical else ""}
ax.set(xlabel="{axes[0]}", ylabel="{axes[1]}", title="Scores by class")""")
    assert (box.type, box.title) == (ChartType.BOX_AND_WHISKER, "Scores by class")
    # Horizontal boxes arrive as vertical ones.
    assert (box.x_label, box.y_label, box.x_unit, box.y_unit) == ("Class", "Score", None, None)
    values = [
        (part.min, part.first_quartile, part.median, part.third_quartile, part.max, part.outliers) for part in box.elements
    ]
    assert values == [(78, 85, 88, 90, 92, []), (40, 45, 50, 53, 54, [76]), (80, 84, 88, 94, 99, [])]
    if vertical:
        assert [part.label for part in box.elements] == ["A", "B", "C"]


# interpreter: G3, G9
async def test_line_with_dates(shared):
    code = """
from datetime import datetime, timedelta
days = [datetime(2024, 9, 1) + timedelta(days=day) for day in range(100)]
x = np.linspace(0, 10, 100)
ax.plot(days, np.sin(x), label="sin(x)")
ax.plot(days, np.cos(x), label="cos(x)")
ax.set(xlabel="Time (s)", ylabel="Amplitude [Hz]", title="Waves")"""
    line = await chart(shared, code)
    assert (line.type, line.title) == (ChartType.LINE, "Waves")
    assert (line.x_label, line.y_label, line.x_unit, line.y_unit) == ("Time (s)", "Amplitude [Hz]", "s", "Hz")
    assert (line.x_scale, line.y_scale) == (ScaleType.DATETIME, ScaleType.LINEAR)
    assert all(datetime.fromisoformat(tick) for tick in line.x_ticks) and line.x_ticks
    assert all(isinstance(tick, float) for tick in line.y_ticks) and line.y_ticks
    assert all(isinstance(label, str) for label in line.x_tick_labels + line.y_tick_labels)
    assert [part.label for part in line.elements] == ["sin(x)", "cos(x)"]
    for part in line.elements:
        assert len(part.points) == 100
        assert all(isinstance(x, str) and isinstance(y, float) for x, y in part.points)
    execution = await shared.run_code("fig")
    shown = [result for result in json.loads(execution.to_json())["results"] if "chart" in result]
    assert shown and shown[0]["chart"]["title"] == "Waves" and len(shown[0]["chart"]["elements"]) == 2


# interpreter: G4
async def test_logarithmic_axis(shared):
    line = await chart(shared, """
x = np.linspace(1, 100, 100)
ax.plot(x, np.exp(x / 20), label="growth")
ax.set_yscale("log")
ax.set(xlabel="X-axis", ylabel="Y-axis (log scale)", title="Growth")""")
    assert (line.type, line.title) == (ChartType.LINE, "Growth")
    assert (line.x_label, line.y_label, line.x_unit, line.y_unit) == ("X-axis", "Y-axis (log scale)", None, "log scale")
    assert (line.x_scale, line.y_scale) == (ScaleType.LINEAR, ScaleType.LOG)
    assert all(isinstance(tick, float) for tick in line.y_ticks)
    assert [(part.label, len(part.points)) for part in line.elements] == [("growth", 100)]


# interpreter: G5
async def test_pie(shared):
    pie = await chart(shared, 'ax.pie([90, 10], labels=["Yes", "No"])\nax.set_title("Agreement")')
    assert (pie.type, pie.title) == (ChartType.PIE, "Agreement")
    assert [(part.label, round(part.angle), part.radius) for part in pie.elements] == [("Yes", 324, 1), ("No", 36, 1)]


# interpreter: G6
async def test_scatter(shared):
    scatter = await chart(shared, """
ax.scatter(range(5), [1, 3, 2, 5, 4], label="Dataset 1")
ax.scatter(range(10), range(10), label="Dataset 2")
ax.set(xlabel="A", ylabel="B")""")
    assert (scatter.type, scatter.title) == (ChartType.SCATTER, None)
    assert (scatter.x_label, scatter.y_label) == ("A", "B")
    assert (scatter.x_scale, scatter.y_scale) == (ScaleType.LINEAR, ScaleType.LINEAR)
    assert [(part.label, len(part.points)) for part in scatter.elements] == [("Dataset 1", 5), ("Dataset 2", 10)]
    assert all(isinstance(x, float) and isinstance(y, float) for part in scatter.elements for x, y in part.points)


# interpreter: G7
async def test_two_sub_plots(shared):
    both = await chart(shared, """
plt.close(fig)
fig, (left, right) = plt.subplots(1, 2)
left.bar(["A", "B"], [1, 2], label="Amounts")
left.set(title="Bars", xlabel="Name", ylabel="Amount")
right.plot([1, 2, 3], [4, 5, 6], label="Line")
right.set(title="Lines", xlabel="X", ylabel="Y")
fig.suptitle("Both")""")
    assert (both.type, both.title) == (ChartType.SUPERCHART, "Both")
    assert [(part.type, part.title) for part in both.elements] == [(ChartType.BAR, "Bars"), (ChartType.LINE, "Lines")]
    assert [part.x_label for part in both.elements] == ["Name", "X"]
    assert [(part.label, part.value) for part in both.elements[0].elements] == [("A", 1), ("B", 2)]


# interpreter: G8
async def test_categories_and_unknown_types(shared):
    line = await chart(shared, 'ax.plot([1, 2, 3], ["low", "mid", "high"], label="levels")')
    assert (line.type, line.y_scale) == (ChartType.LINE, ScaleType.CATEGORICAL)
    assert line.y_tick_labels == ["low", "mid", "high"]
    unknown = await chart(shared, """
ax.add_artist(plt.Circle((0, 0), 0.5))
ax.add_artist(plt.Circle((1, 1), 0.5))
ax.set_title("Circles")""")
    assert (unknown.type, unknown.title, unknown.elements) == (ChartType.UNKNOWN, "Circles", [])
