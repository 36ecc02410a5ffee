"""Imports and caches that most executions need."""

import sys


def warm_up():
    """Imports the usual packages, and formats a small figure, table and image once.

    It binds no name of the user's, and leaves no figure and no output.
    """
    import e2b_charts  # noqa: F401
    import matplotlib.pyplot as plt
    import orjson  # noqa: F401
    import pandas
    from IPython import get_ipython
    from PIL import Image

    from .entropy import reseed

    shell = get_ipython()
    figure, axes = plt.subplots()
    try:
        axes.plot([1, 2], [3, 4], label="line")
        axes.bar([1, 2], [3, 4])
        axes.set_title("title")
        axes.legend()
        shell.display_formatter.format(figure)
    finally:
        plt.close(figure)
    frame = pandas.DataFrame({"number": [1, 2], "text": ["a", "b"], "time": pandas.to_datetime(["2020-01-01", None])})
    shell.display_formatter.format(frame)
    frame.describe()
    shell.display_formatter.format(Image.new("RGB", (8, 8)))
    shell.display_formatter.format([1, {"key": 2.0}])
    # The drawing backend remembers the figure until the end of a cell.
    backend = sys.modules.get("matplotlib_inline.backend_inline")
    if backend is not None:
        backend.show._to_draw = []
        backend.show._draw_called = False
    reseed()
