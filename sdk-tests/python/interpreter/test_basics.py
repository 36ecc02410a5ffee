"""Results, callbacks, languages, variables, contexts, tables and images, with both SDKs."""

import base64

import pytest
from e2b_code_interpreter import InvalidArgumentException

from interpreter.conftest import SANDBOX_VARIABLES
from interpreter.sdks import KERNEL_START, output, text

pytestmark = pytest.mark.timeout(300)

PNG = b"\x89PNG\r\n\x1a\n"


# interpreter: B1
async def test_a_result_and_the_state_of_the_next_call(shared):
    assert text(await shared.run_code("x = 1; x")) == "1"
    assert text(await shared.run_code("x += 1; x")) == "2"


# interpreter: B3
@pytest.mark.parametrize(
    "code, expected",
    [
        ("21 * 2", "result"),
        ("nobody", "error"),
        ("print('out')", "stdout"),
        ("import sys; print('err', file=sys.stderr)", "stderr"),
    ],
)
async def test_one_callback_for_one_statement(shared, code, expected):
    seen = []
    names = ("result", "error", "stdout", "stderr")
    handlers = {f"on_{name}": lambda item, name=name: seen.append((name, item)) for name in names}
    execution = await shared.run_code(code, **handlers)
    [(name, item)] = seen
    assert name == expected
    lists = [execution.results, execution.logs.stdout, execution.logs.stderr]
    lines = {"stdout": "out\n", "stderr": "err\n"}
    if expected == "result":
        assert item.text == "42" and lists == [[item], [], []]
    elif expected == "error":
        assert item.name == "NameError" and item.value == "name 'nobody' is not defined"
        assert "NameError" in item.traceback and execution.error is item and lists == [[], [], []]
    else:
        assert item.line == lines[expected] and item.error == (expected == "stderr")
        assert lists == [[], ["out\n"], []] if expected == "stdout" else [[], [], ["err\n"]]


# interpreter: B4
async def test_a_plot_and_a_last_expression_are_two_results(shared):
    code = """
        import numpy as np
        import matplotlib.pyplot as plt
        plt.plot(np.linspace(0, 20, 100), np.sin(np.linspace(0, 20, 100)))
        plt.show()
        np.array([1, 2])
    """
    execution = await shared.run_code(code)
    assert text(execution) == "array([1, 2])"
    assert [result.is_main_result for result in execution.results] == [False, True]


# interpreter: B5
async def test_a_shell_command_runs_in_the_home_directory(shared):
    assert output(await shared.run_code("!pwd")).strip() == "/home/user"


# interpreter: B6
async def test_a_bundle_of_latex_alone(shared):
    execution = await shared.run_code(r"""
        from IPython.display import display
        display({"text/latex": r"\text{CPython}"}, raw=True)
    """)
    assert output(execution) == "" and execution.results[0].formats() == ["latex"]


# interpreter: L1
@pytest.mark.parametrize(
    "language, code, expected",
    [
        ("python", "import os; print(os.getcwd())", "/home/user"),
        ("js", "console.log(process.cwd())", "/home/user"),
        ("ts", "console.log(process.cwd())", "/home/user"),
        ("r", "print(getwd())", '[1] "/home/user"'),
        ("java", 'System.out.println(System.getProperty("user.dir"));', "/home/user"),
        ("bash", "pwd", "/home/user"),
    ],
)
async def test_the_working_directory(shared, language, code, expected):
    execution = await shared.run_code(code, language=language, timeout=KERNEL_START)
    assert output(execution).strip() == expected


# interpreter: L2, L4
@pytest.mark.parametrize(
    "language, code, expected",
    [
        ("js", 'console.log("Hello, World!")', ["Hello, World!\n"]),
        ("ts", 'const message: string = "Hello, World!"; console.log(message)', ["Hello, World!\n"]),
        ("r", 'print("Hello, World!")', ['[1] "Hello, World!"\n']),
        ("java", 'System.out.println("Hello, World!");', None),
        ("bash", 'echo "Hello, World!"', ["Hello, World!\n"]),
        ("python", 'print("Hello, World!")', ["Hello, World!\n"]),
    ],
)
async def test_every_language_prints(shared, language, code, expected):
    execution = await shared.run_code(code, language=language, timeout=KERNEL_START)
    output(execution)
    if expected is None:
        assert execution.logs.stdout[0] == "Hello, World!"
    else:
        assert execution.logs.stdout == expected


# interpreter: L3
async def test_javascript_imports_and_awaits(shared):
    code = "import { readFileSync } from 'fs'\nconsole.log(readFileSync('/etc/hostname', 'utf8').length > 0)"
    assert output(await shared.run_code(code, language="js")) == "true\n"
    code = "async function answer() { return 'Hello' + ', ' + 'World!' }\nawait answer()"
    assert text(await shared.run_code(code, language="js")) == "Hello, World!"


# interpreter: L4
async def test_typescript_types_are_removed(shared):
    code = "interface Answer { value: number }\nconst answer: Answer = { value: 42 }\nconsole.log(answer.value)"
    assert output(await shared.run_code(code, language="ts", timeout=KERNEL_START)) == "42\n"


# interpreter: E1
@pytest.mark.parametrize(
    "language, read",
    [
        ("bash", "echo ${%s-none}"),
        ("java", 'System.out.println(System.getProperty("%s", "none"));'),
        ("javascript", "console.log(process.env.%s ?? 'none')"),
        ("python", "import os; print(os.getenv('%s', 'none'))"),
        ("r", "cat(Sys.getenv('%s', 'none'))"),
    ],
)
async def test_variables_of_the_sandbox_and_of_one_execution(shared, language, read):
    async def value(name: str, **variables: str) -> str:
        execution = await shared.run_code(read % name, language=language, envs=variables or None, timeout=KERNEL_START)
        return output(execution).strip()

    own = SANDBOX_VARIABLES["SHARED"]
    assert await value("SHARED") == own
    # Signs that have a meaning in one of the languages.
    for once in ("once", """it's "$HOME" \\n `x` ${y} é"""):
        assert await value("ONCE", ONCE=once) == once
        assert await value("ONCE") == "none"
    assert await value("SHARED", SHARED="of the execution") == "of the execution"
    assert await value("SHARED") == own


# interpreter: C1, C3
@pytest.mark.parametrize("options", [{}, {"language": "python", "cwd": "/root"}])
async def test_a_new_context_is_the_last_of_the_list(shared, options):
    context = await shared.create_code_context(**options)
    last = (await shared.list_code_contexts())[-1]
    assert (context.language, context.cwd) == ("python", options.get("cwd", "/home/user"))
    assert (last.id, last.language, last.cwd) == (context.id, context.language, context.cwd)
    assert output(await shared.run_code("import os; print(os.getcwd())", context=context)).strip() == context.cwd
    await shared.remove_code_context(context)
    assert context.id not in [listed.id for listed in await shared.list_code_contexts()]


# interpreter: C4, C5
async def test_contexts_are_separate_and_a_restart_forgets(shared):
    await shared.run_code("x = 'of the default context'")
    context = await shared.create_code_context()
    execution = await shared.run_code("x", context=context)
    assert (execution.error.name, execution.error.value) == ("NameError", "name 'x' is not defined")
    assert text(await shared.run_code("x = 1; x", context=context)) == "1"
    await shared.restart_code_context(context)
    execution = await shared.run_code("x", context=context)
    assert (execution.error.name, execution.error.value) == ("NameError", "name 'x' is not defined")
    assert execution.execution_count == 1
    assert text(await shared.run_code("x")) == "of the default context"
    await shared.remove_code_context(context)


# interpreter: C6
async def test_a_context_with_a_language_is_rejected(shared):
    [context, *_] = await shared.list_code_contexts()
    with pytest.raises(InvalidArgumentException):
        await shared.run_code("1", context=context, language="python")


# interpreter: D1
async def test_a_table_has_data(shared):
    execution = await shared.run_code("import pandas as pd\npd.DataFrame({'a': [1, 2, 3]})")
    output(execution)
    result = execution.results[0]
    assert result.data == {"a": [1, 2, 3]} and {"text", "html", "data"} <= set(result.formats())


# interpreter: D2
async def test_a_plot_is_a_picture(shared):
    execution = await shared.run_code("import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nplt.show()")
    output(execution)
    result = execution.results[0]
    assert base64.b64decode(result.png).startswith(PNG) and result.text.startswith("<Figure size")
    assert result.extra == {} and execution.logs.stderr == []


# interpreter: D3
@pytest.mark.parametrize("last", ["image.show()", "image", 'image.save("x.png")'])
async def test_an_image_of_pil_is_a_picture(shared, last):
    head = "import numpy\nfrom PIL import Image\nimage = Image.fromarray(numpy.zeros((16, 16, 3), dtype='uint8'))"
    execution = await shared.run_code(f"{head}\n{last}")
    output(execution)
    assert base64.b64decode(execution.results[0].png).startswith(PNG)
    if "save" in last:
        assert bytes(await shared.files.read("x.png", format="bytes")).startswith(PNG)
