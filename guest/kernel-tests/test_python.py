"""Behaviour of the Python kernel: values, tables, images, hostile objects, interruption, random state."""

import base64
import json
import time

import pytest

INFINITE = "while True: pass"


def test_nothing_large_is_imported_at_the_start(start):
    kernel = start("python3")
    code = "import sys; [m for m in ('numpy', 'pandas', 'matplotlib', 'PIL', 'e2b_charts', 'orjson') if m in sys.modules]"
    assert json.loads(kernel.run(code).text.replace("'", '"')) in ([], ["orjson"])


def test_the_warm_up_is_invisible(start):
    kernel = start("python3")
    before = set(json.loads(kernel.run("import json; print(json.dumps(list(globals())))", silent=False).stdout[0]))
    outcome = kernel.warm_up("warm-up.py")
    assert outcome.reply["status"] == "ok"
    assert not (outcome.stdout or outcome.stderr or outcome.displays or outcome.results or outcome.errors)
    after = kernel.run("print(json.dumps(list(globals()))); import matplotlib.pyplot as plt; plt.get_fignums()")
    assert {name for name in set(json.loads(after.stdout[0])) - before if not name.startswith("_")} == set()
    assert after.counts == [2]
    assert after.text == "[]"
    assert not after.displays
    assert kernel.run("import sys; 'pandas' in sys.modules").text == "True"


def test_the_counter_stays_at_zero_during_the_warm_up(start):
    kernel = start("python3")
    kernel.warm_up("warm-up.py")
    assert kernel.run("1").counts == [1]


@pytest.mark.parametrize(
    ("code", "text", "value"),
    [
        ("{'a': 1, 'b': [1, 2]}", "{'a': 1, 'b': [1, 2]}", {"a": 1, "b": [1, 2]}),
        ("[1, 2, float('nan')]", "[1, 2, nan]", [1, 2, None]),
        ("{1: 'x', None: (1, 2)}", "{1: 'x', None: (1, 2)}", {"1": "x", "null": [1, 2]}),
        ("import numpy as np; [np.int64(3), np.array([1.5, 2])]", None, [3, [1.5, 2.0]]),
    ],
)
def test_lists_and_dictionaries_are_also_json(python, code, text, value):
    result = python.run(code).result
    assert result["application/json"] == value
    assert text is None or result["text/plain"] == text


@pytest.mark.parametrize("code", ["(1, 2)", "{1, 2}", "[{1, 2}]", "x = []; x.append(x); x", "[2 ** 70]", "['\\ud800']"])
def test_other_values_are_only_text(python, code):
    assert "application/json" not in python.run(code).result


def test_long_sequences_are_not_truncated(python):
    assert "..." not in python.run("list(range(5000))").text


def test_a_table_is_data(python):
    frame = "import pandas as pd, numpy as np\npd.DataFrame({'a': [1, 2, 3], 'b': [1.5, np.nan, np.inf], 'c': list('xyz')})"
    result = python.run(frame).result
    assert result["e2b/data"] == {"a": [1, 2, 3], "b": [1.5, None, None], "c": ["x", "y", "z"]}
    assert list(result["e2b/data"]) == ["a", "b", "c"]
    assert "<table" in result["text/html"]


def test_every_cell_of_a_table_has_a_json_form(python):
    code = """
import pandas as pd, numpy as np, decimal, datetime
class Hostile:
    def __str__(self): raise RuntimeError('no')
    __repr__ = __str__
frame = pd.DataFrame({
    'time': [pd.Timestamp('2020-01-01'), pd.NaT],
    'zone': [pd.Timestamp('2020-01-01', tz='Europe/Berlin'), pd.NaT],
    'delta': [pd.Timedelta(days=1), pd.NaT],
    'period': [pd.Period('2020-01'), pd.NaT],
    'decimal': [decimal.Decimal('1.50'), None],
    'nested': [[1, {'x': (1, 2)}], {'k': {3}}],
    'nullable': pd.array([1, None], dtype='Int64'),
    'category': pd.Categorical(['a', None]),
    'large': [2 ** 70, True],
    'complex': [1 + 2j, np.float32(2)],
    'hostile': [Hostile(), '\\ud800'],
    'unsigned': np.array([2 ** 64 - 1, 1], dtype='uint64'),
    'date': [datetime.date(2020, 1, 2), datetime.time(1, 2)],
    1: [0, 1],
    ('t', 2): [True, False],
})
from IPython import get_ipython
get_ipython().display_formatter.formatters['e2b/data'](frame)
"""
    python.run(code)
    data = python.run("import json; print(json.dumps(get_ipython().display_formatter.formatters['e2b/data'](frame)))")
    data = json.loads(data.stdout[0])
    assert data["time"] == ["2020-01-01T00:00:00", None]
    assert data["zone"] == ["2020-01-01T00:00:00+01:00", None]
    assert data["delta"] == ["1 days 00:00:00", None]
    assert data["period"] == ["2020-01", None]
    assert data["decimal"] == ["1.50", None]
    assert data["nested"] == [[1, {"x": [1, 2]}], {"k": "{3}"}]
    assert data["nullable"] == [1, None]
    assert data["category"] == ["a", None]
    assert data["large"] == [str(2**70), True]
    assert data["complex"] == ["(1+2j)", "(2+0j)"]
    assert data["hostile"] == ["<Hostile object>", "?"]
    assert data["unsigned"] == [str(2**64 - 1), 1]
    assert data["date"] == ["2020-01-02", "01:02:00"]
    assert data["1"] == [0, 1]
    assert data["('t', 2)"] == [True, False]


def test_columns_of_one_name_are_all_sent(python):
    data = python.run("pd.DataFrame([[1, 2, 3]], columns=['a', 'a', 'a.1'])").result["e2b/data"]
    assert list(data.values()) == [[1], [2], [3]]


def test_only_tables_are_data(python):
    assert set(python.run("pd.Series([1, 2])").result) == {"text/plain"}


def test_objects_define_their_own_data_and_chart(python):
    code = """
class Own:
    def _repr_e2b_data_(self): return {'rows': 1}
    def _repr_e2b_chart_(self): return {'type': 'line'}
Own()"""
    result = python.run(code).result
    assert (result["e2b/data"], result["e2b/chart"]) == ({"rows": 1}, {"type": "line"})


def test_a_raw_bundle_is_sent_as_it_is(python):
    assert python.run("display({'text/latex': 'x'}, raw=True)").displays == [{"text/latex": "x"}]


@pytest.mark.parametrize("action", ["image.show()", "image", "image.save('x.png')"])
def test_an_image_is_shown(python, action):
    outcome = python.run(f"from PIL import Image\nimage = Image.new('RGB', (9, 9), 'red')\n{action}")
    (data,) = outcome.displays + outcome.results
    assert base64.b64decode(data["image/png"], validate=True).startswith(b"\x89PNG")
    assert base64.b64decode(data["image/jpeg"], validate=True).startswith(b"\xff\xd8")
    assert "\n" not in data["image/png"]
    assert len(outcome.results) == (action == "image")


def test_a_search_for_the_module_does_not_prevent_the_display(start):
    kernel = start("python3")
    kernel.run("import importlib.util; importlib.util.find_spec('PIL.Image')")
    assert len(kernel.run("from PIL import Image; Image.new('RGB', (2, 2)).show()").displays) == 1


def test_saving_writes_the_file_and_shows_only_for_text_paths(python):
    code = "image.save('y.png'); import pathlib, io; image.save(pathlib.Path('z.png')); image.save(io.BytesIO(), 'PNG')"
    assert len(python.run(code).displays) == 1
    assert (python.home / "y.png").exists() and (python.home / "z.png").exists()


def test_transparency_has_no_jpeg(python):
    data = python.run("Image.new('RGBA', (4, 4))").result
    assert "image/png" in data and "image/jpeg" not in data


def test_images_that_children_save_do_not_disturb_the_kernel(python):
    code = "import os\npid = os.fork()\nif pid == 0:\n    image.save('child.png'); os._exit(0)\nos.waitpid(pid, 0)[1]"
    outcome = python.run(code)
    assert outcome.text == "0" and not outcome.displays
    assert (python.home / "child.png").exists()


def test_a_shown_plot_and_an_array_are_two_results(python):
    code = "import matplotlib.pyplot as plt, numpy as np\nx = np.linspace(0, 1, 3)\nplt.plot(x)\nplt.show()\nx"
    outcome = python.run(code)
    assert len(outcome.displays + outcome.results) == 2
    (figure,) = outcome.displays
    assert set(figure) == {"text/plain", "image/png", "e2b/chart"}
    assert figure["text/plain"].startswith("<Figure size")
    assert "\n" not in figure["image/png"]


def test_a_plot_is_shown_at_the_end_of_a_cell(python):
    (figure,) = python.run("plt.plot(x);").displays
    assert figure["e2b/chart"]["type"] == "line"


def test_a_saved_plot_is_shown_twice(python):
    first, second = python.run("plt.plot(x); plt.savefig('plot.png')").displays
    assert "e2b/chart" not in first and second["e2b/chart"]["type"] == "line"


def test_an_error_has_no_colours(python):
    error = python.run("1/0").error
    assert (error["ename"], error["evalue"]) == ("ZeroDivisionError", "division by zero")
    assert "\x1b" not in "".join(error["traceback"])
    assert "Traceback (most recent call last)" in "".join(error["traceback"])


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("undefined", "NameError"),
        ("1 1", "SyntaxError"),
        ("input()", "StdinNotImplementedError"),
        ("import sys; sys.exit(3)", "SystemExit"),
    ],
)
def test_errors_have_the_name_of_their_class(python, code, name):
    assert python.run(code).error["ename"] == name


def test_commands_run_in_a_terminal(python):
    assert python.run("!pwd").stdout == [f"{python.home}\r\n"]


def test_top_level_await(python):
    assert python.run("import asyncio\nawait asyncio.sleep(0, 'done')").text == "'done'"


def test_one_print_is_one_message(python):
    assert python.run("print('x')").stdout == ["x\n"]


HOSTILE = {
    "repr raises": "class A:\n    def __repr__(self): raise ValueError('no')\nA()",
    "attributes raise": "class A:\n    def __getattr__(self, name): raise ValueError(name)\nA()",
    "every attribute exists": "class A:\n    def __getattr__(self, name): return lambda *a, **k: 5\nA()",
    "formatter raises": "class A:\n    def _repr_e2b_data_(self): raise ValueError('no')\nA()",
    "class is a lie": "class A:\n    __class__ = property(lambda self: 1/0)\nA()",
    "bundle is not JSON": "display({'application/json': {1, 2}}, raw=True)",
    "bundle has odd keys": "class A:\n    def _repr_mimebundle_(self, **k): return {5: object(), 'e2b/data': object()}\nA()",
    "text is not UTF-8": "'\\ud800'",
    "output is not UTF-8": "print('\\ud800')",
    "NUL and line separators": "'\\0\\u2028\\x85'",
    "repr is huge": "class A:\n    def __repr__(self): return 'x' * 10_000_000\nA()",
    "nested deeply": "x = []\nfor _ in range(100_000): x = [x]\nx",
    "figure with a hostile artist": "f = plt.figure(); a = f.add_subplot(); a.plot([1]); a.get_title = 5; f",
}


@pytest.mark.parametrize("code", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_object_does_not_break_the_kernel(python, code):
    python.run("import matplotlib.pyplot as plt")
    python.run(code)
    python.run("plt.close('all')")
    assert python.run("1 + 1").text == "2"


@pytest.mark.parametrize(
    "code",
    [
        f"print('running')\n{INFINITE}",
        f"class A:\n    def __repr__(self):\n        print('running', flush=True)\n        {INFINITE}\nA()",
        "import time; print('running', flush=True); time.sleep(300)",
    ],
)
def test_an_interrupt_keeps_the_state(python, code):
    python.run("kept = 7")
    request = python.send(code)
    python.receive(request, until=lambda outcome: outcome.stdout)
    python.interrupt()
    assert python.receive(request).error["ename"] == "KeyboardInterrupt"
    assert python.run("kept").text == "7"


def test_no_output_is_lost_when_nobody_reads(start):
    kernel = start("python3")
    count = 10_000
    request = kernel.send(f"for i in range({count}): display({{'text/plain': str(i)}}, raw=True)\nprint('end')")
    # Longer than the kernel needs if it does not wait.
    time.sleep(3)
    outcome = kernel.receive(request)
    assert [int(data["text/plain"]) for data in outcome.displays] == list(range(count))
    assert outcome.stdout == ["end\n"]


def test_reseeding_changes_every_generator(python):
    python.run("import json, random, ssl, tempfile, uuid, numpy as np")
    seed = "random.seed(1); np.random.seed(1)"
    draw = "print(json.dumps([random.random(), float(np.random.rand()), next(tempfile._get_candidate_names())]))"
    fixed = [json.loads(python.run(f"{seed}; {draw}").stdout[0]) for _ in range(2)]
    assert fixed[0][:2] == fixed[1][:2]
    assert python.run(f'{seed}\n__import__("hearth_kernel").reseed()', silent=True).reply["status"] == "ok"
    assert not set(json.loads(python.run(draw).stdout[0])) & set(fixed[0])


def test_identifiers_differ_after_reseeding(python):
    """Version 1 has a node and a sequence number, which are the same for all sandboxes of a snapshot."""
    python.run("before = uuid.uuid1()")
    python.run('__import__("hearth_kernel").reseed()', silent=True)
    code = "after = uuid.uuid1(); (before.node != after.node, type(after.clock_seq))"
    assert python.run(code).text == "(True, int)"
