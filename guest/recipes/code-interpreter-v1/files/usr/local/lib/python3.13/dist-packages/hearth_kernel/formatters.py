"""Formatters for JSON, tables and charts."""

import sys
import warnings

from IPython.core.formatters import BaseFormatter
from traitlets import Unicode

from .values import to_json, unique_keys


class DataFormatter(BaseFormatter):
    """Formatter for tables as data; objects may define `_repr_e2b_data_`."""

    format_type = Unicode("e2b/data")
    print_method = "_repr_e2b_data_"
    _return_type = (dict, list)


class ChartFormatter(BaseFormatter):
    """Formatter for the content of a chart; objects may define `_repr_e2b_chart_`."""

    format_type = Unicode("e2b/chart")
    print_method = "_repr_e2b_chart_"
    _return_type = dict


def register(shell):
    """Adds the formatters to the shell; types of packages are named, not imported."""
    display = shell.display_formatter
    for formatter in (DataFormatter(parent=display), ChartFormatter(parent=display)):
        display.formatters[formatter.format_type] = formatter
    display.formatters["e2b/data"].for_type_by_name("pandas.core.frame", "DataFrame", table)
    # Not `Figure`: matplotlib's drawing backend removes that type from all formatters when it is loaded.
    display.formatters["e2b/chart"].for_type_by_name("matplotlib.figure", "FigureBase", chart)
    for container in (list, dict):
        display.formatters["application/json"].for_type(container, json_copy)


def json_copy(value):
    """Returns a copy that consists of JSON values, or None if the value contains anything else."""
    import orjson

    try:
        return orjson.loads(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS))
    except (TypeError, ValueError, RecursionError):
        return None


def table(frame):
    """Returns the columns of a data frame: names, and values in the order of the rows."""
    names = unique_keys(frame.columns)
    return {name: _column(frame.iloc[:, position]) for position, name in enumerate(names)}


def _column(series):
    numpy = sys.modules["numpy"]
    values = series.to_numpy() if isinstance(series.dtype, numpy.dtype) else None
    # These are most columns, and need no decision per cell.
    if values is not None and values.dtype.kind == "b":
        return values.tolist()
    if values is not None and values.dtype.kind == "i":
        return values.tolist()
    if values is not None and values.dtype.kind == "f" and values.dtype.itemsize <= 8:
        cells = values.astype(object)
        cells[~numpy.isfinite(values)] = None
        return cells.tolist()
    return [to_json(cell) for cell in series.tolist()]


def chart(figure):
    """Returns the content of a figure, or an empty dictionary if it cannot be extracted."""
    try:
        from e2b_charts import chart_figure_to_dict

        # Extraction must not print warnings that the user's own code did not cause.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return to_json(chart_figure_to_dict(figure))
    except Exception:  # Artists are the user's, and may raise anything.
        return {}
