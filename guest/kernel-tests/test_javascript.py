"""Behaviour of the JavaScript and TypeScript kernel."""

import base64
import json
import time

import pytest


def test_the_last_expression_is_the_result(javascript):
    assert javascript.run("x = 1; x").text == "1"
    assert javascript.run("x += 1; x").text == "2"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("'it'", "'it'"),
        ("null", "null"),
        ("[1, 'a', {b: 2}]", "[ 1, 'a', { b: 2 } ]"),
        ("{a: 1, b: 2}", "{ a: 1, b: 2 }"),
        ("({a: 1})", "{ a: 1 }"),
        ("Promise.resolve(5)", "5"),
        ("await Promise.resolve('x')", "'x'"),
        ("async function f() { return 7 }\nawait f()", "7"),
        ("new Map([[1, 2]])", "Map(1) { 1 => 2 }"),
        ("'a'.repeat(20000).length", "20000"),
        ("let s = 0; for (const i of [1, 2]) s += i; s", "3"),
        ("for await (const v of [1, 2]) { var sum = (globalThis.sum ?? 0) + v }\nsum", "3"),
        ("class A { static b = 4 }\nA.b", "4"),
        ("export const exported = 3; exported", "3"),
        ("export default 6", "6"),
        ("typeof require, typeof module, typeof exports", "'object'"),
    ],
)
def test_values_are_printed_as_by_node(javascript, code, text):
    assert javascript.run(code).text == text


@pytest.mark.parametrize("code", ["undefined", "const a = 1", "let b", "function c() {}", "class D {}", "if (false) 1", ""])
def test_statements_have_no_result(javascript, code):
    outcome = javascript.run(code)
    assert not (outcome.results or outcome.errors or outcome.displays)


def test_long_strings_are_complete(javascript):
    assert len(javascript.run("'a'.repeat(50_000)").text) == 50_002


def test_declarations_are_visible_in_later_cells_and_may_be_repeated(javascript):
    for value in (1, 2):
        javascript.run(f"const a = {value}; let b = {value}; class C {{ v = {value} }} function d() {{ return {value} }}")
        assert javascript.run("[a, b, new C().v, d()]").text == f"[ {value}, {value}, {value}, {value} ]"
    for value in (3, 4):
        javascript.run(
            f"""
const {{ a, nested: [b] }} = await Promise.resolve({{ a: {value}, nested: [{value}] }})
class C {{ v = {value} }}
function d() {{ return {value} }}
for (var i = 0; i < {value}; i++) {{ var inner = i }}
for (var key of [{value}]);
for (var {{ length }} of ['abc']);"""
        )
        expected = f"[ {value}, {value}, {value}, {value}, {value}, {value - 1}, {value}, 3 ]"
        text = javascript.run("[a, b, new C().v, d(), i, inner, key, length]").text
        assert " ".join(text.replace("\n", " ").split()) == expected


def test_functions_of_awaiting_cells_are_hoisted(javascript):
    assert javascript.run("const r = later(); await 0; function later() { return 'hoisted' }\nr").text == "'hoisted'"
    assert javascript.run("later()").text == "'hoisted'"


def test_imports(javascript):
    code = "import { existsSync as exists } from 'fs'; import path, { join } from 'path'; import * as os from 'node:os'; import 'url'"
    assert not javascript.run(code).errors
    code = "[exists('/'), path.join === join, typeof os.cpus, typeof require('fs').readFileSync]"
    assert javascript.run(code).text == "[ true, true, 'function', 'function' ]"
    assert javascript.run("import { readFileSync } from 'fs'\nreadFileSync('/dev/null', 'utf8')").text == "''"


def test_imports_of_files_are_relative_to_the_working_directory(javascript):
    (javascript.home / "own.mjs").write_text("export const value = 5; export default 'd'")
    (javascript.home / "old.cjs").write_text("exports.value = 6")
    (javascript.home / "data.json").write_text('{"value": 7}')
    code = "import d, { value } from './own.mjs'; [d, value, require('./old.cjs').value, require('./data.json').value]"
    assert javascript.run(code).text == "[ 'd', 5, 6, 7 ]"


def test_packages_are_found_in_the_working_directory(javascript):
    package = javascript.home / "node_modules/own-package"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"name": "own-package", "main": "main.js"}')
    (package / "main.js").write_text("module.exports = { answer: 42 }")
    assert javascript.run("import own, { answer } from 'own-package'; [own.answer, answer]").text == "[ 42, 42 ]"
    assert javascript.run("require('own-package').answer").text == "42"
    (javascript.home / "compiled.cjs").write_text("exports.__esModule = true; exports.default = 'd'; exports['named'] = 'n'")
    assert javascript.run("import d, { named } from './compiled.cjs'; [d, named]").text == "[ 'd', 'n' ]"
    code = "import data from './data2.json' with { type: 'json' }; data.value"
    (javascript.home / "data2.json").write_text('{"value": 8}')
    assert javascript.run(code).text == "8"


def test_globals_of_node_may_be_declared(javascript):
    assert javascript.run("const crypto = require('crypto'); typeof crypto.createHash").text == "'function'"
    assert javascript.run("typeof crypto.createHash").text == "'function'"
    javascript.run("crypto = require('crypto').webcrypto")


def test_types_are_removed(javascript):
    code = """
import type { Stats } from 'fs'
interface Point { x: number; y?: string }
type Name = string | null
enum Colour { Red, Green }
const message: string = 'Hello'
function identity<T>(value: T): T { return value }
class Box<T> { constructor(private readonly value: T, public extra = 1) {} get(): T { return this.value! } }
console.log(message)
export type Other = Name;
[identity<Point>({ x: 1 } as Point), Colour.Green, new Box('in').get()]"""
    outcome = javascript.run(code)
    assert outcome.text == "[ { x: 1 }, 1, 'in' ]"
    assert outcome.stdout == ["Hello\n"]
    assert javascript.run("Colour.Red").text == "0"


def test_one_line_is_one_message(javascript):
    assert javascript.run("console.log('Hello, World!')").stdout == ["Hello, World!\n"]


def test_outputs_keep_their_order(javascript):
    request = javascript.send("console.log('a'); console.error('b'); process.stdout.write('c'); $$.html('d'); console.log('e'); 'f'")
    kinds = []
    while not kinds or kinds[-1] != "idle":
        message = javascript.client.get_iopub_msg(timeout=30)
        if message["parent_header"].get("msg_id") == request:
            content = message["content"]
            kinds.append(content.get("text") or content.get("execution_state") or message["msg_type"])
    assert kinds == ["busy", "execute_input", "a\n", "b\n", "c", "display_data", "e\n", "execute_result", "idle"]
    javascript.client.get_shell_msg(timeout=30)


def test_output_of_a_running_cell_arrives_before_its_end(javascript):
    request = javascript.send("console.log('first'); require('child_process').execSync('sleep 3'); console.log('second')")
    started = time.monotonic()
    javascript.receive(request, until=lambda outcome: outcome.stdout)
    assert time.monotonic() - started < 2
    assert javascript.receive(request).stdout == ["second\n"]


def test_multibyte_characters_may_be_split(javascript):
    code = "const b = Buffer.from('\u00e9\\n'); process.stdout.write(b.subarray(0, 1)); process.stdout.write(b.subarray(1))"
    assert "".join(javascript.run(code).stdout) == "\u00e9\n"


def test_the_counter_ignores_empty_and_silent_cells(start):
    kernel = start("javascript")
    assert kernel.warm_up("warm-up.js").counts == []
    assert kernel.run("1").counts == [1]
    for code in ("", "  \n", "// nothing", "/* nothing */"):
        assert kernel.run(code).reply["status"] == "ok"
    assert kernel.run("2", silent=True).counts == []
    assert kernel.run("3", store_history=False).counts == [1]
    assert kernel.run("undefined_name").counts == [2]
    assert kernel.run("4").counts == [3]


def test_the_warm_up_binds_no_names(start):
    kernel = start("javascript")
    names = "Object.getOwnPropertyNames(globalThis).length"
    before = kernel.run(names).text
    outcome = kernel.warm_up("warm-up.js")
    assert outcome.reply["status"] == "ok" and not outcome.stderr
    assert kernel.run(names).text == before


def test_an_error_names_the_line_of_the_cell(javascript):
    error = javascript.run("const fine = 1\n\nfunction bad() {\n  throw new TypeError('wrong')\n}\nbad()").error
    assert (error["ename"], error["evalue"]) == ("TypeError", "wrong")
    (trace,) = error["traceback"]
    lines = trace.split("\n")
    assert lines[0] == "TypeError: wrong"
    assert "bad (Cell [" in lines[1] and "]:4:" in lines[1]
    assert "]:6:" in lines[2]
    assert len(lines) == 3


def test_lines_are_right_in_awaiting_cells(javascript):
    (trace,) = javascript.run("import 'fs'\nfunction bad() {\n  throw new Error('x')\n}\nawait 1\nbad()").error["traceback"]
    assert "]:3:" in trace and "]:6:" in trace


@pytest.mark.parametrize(
    ("code", "name", "value"),
    [
        ("missing", "ReferenceError", "missing is not defined"),
        ("const = 1", "SyntaxError", None),
        ("const a = 1; const a = 2", "SyntaxError", None),
        ("return 1", "SyntaxError", None),
        ("throw 'text'", "string", "text"),
        ("throw null", "object", "null"),
        ("await Promise.reject(new RangeError('r'))", "RangeError", "r"),
        ("Promise.reject(new RangeError('r'))", "RangeError", "r"),
        ("import nothing from 'no-such-package'", "Error", None),
        ("require('no-such-package')", "Error", None),
        ("throw { get name() { throw 1 } }", "Error", None),
        ("({ [Symbol.for('nodejs.util.inspect.custom')]() { throw new Error('no') } })", "Error", "no"),
    ],
)
def test_errors(javascript, code, name, value):
    error = javascript.run(code).error
    assert error["ename"] == name
    assert value is None or error["evalue"] == value
    assert "javascript-kernel" not in "".join(error["traceback"])


def test_errors_of_nobody_are_printed(javascript):
    code = "setTimeout(() => { throw new Error('late') }, 1); Promise.reject(new Error('unhandled')); await new Promise(r => setTimeout(r, 200))"
    outcome = javascript.run(code)
    assert not outcome.errors
    text = "".join(outcome.stderr)
    assert "Uncaught Error: late" in text and "unhandled" in text
    assert javascript.run("1").text == "1"


@pytest.mark.parametrize(
    "code",
    [
        "console.log('running'); while (true) {}",
        "console.log('running'); await new Promise(() => {})",
        "console.log('running'); new Promise(() => {})",
        "({ get [Symbol.toStringTag]() { console.log('running'); while (true) {} } })",
        "console.log('running'); await 0; while (true) {}",
    ],
)
def test_an_interrupt_keeps_the_state(javascript, code):
    javascript.run("kept = 7")
    request = javascript.send(code)
    javascript.receive(request, until=lambda outcome: outcome.stdout)
    javascript.interrupt()
    error = javascript.receive(request, seconds=20).error
    assert error["ename"] == "Interrupted"
    assert javascript.run("kept").text == "7"


def test_an_interrupt_between_cells_does_nothing(javascript):
    javascript.interrupt()
    assert javascript.run("1").text == "1"


def test_exit_ends_the_kernel_quietly(start):
    kernel = start("javascript")
    outcome = kernel.run("console.log('bye'); process.exit(0); console.log('never')")
    assert (outcome.reply["status"], outcome.stdout, outcome.errors) == ("ok", ["bye\n"], [])
    deadline = time.monotonic() + 20
    while kernel.manager.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not kernel.manager.is_alive()


def test_no_output_is_lost_when_nobody_reads(javascript):
    request = javascript.send("for (let i = 0; i < 10_000; i++) $$.text(i)\nconsole.log('end')")
    time.sleep(2)
    outcome = javascript.receive(request)
    assert [data["text/plain"] for data in outcome.displays] == [str(i) for i in range(10_000)]
    assert outcome.stdout == ["end\n"]


def test_small_outputs_become_few_messages(javascript):
    outcome = javascript.run("for (let i = 0; i < 10_000; i++) console.log(i)")
    assert "".join(outcome.stdout).split() == [str(i) for i in range(10_000)]
    assert len(outcome.stdout) < 500


def test_rich_values(javascript):
    code = """$$.png(Buffer.from('png')); $$.json({ a: [1] }); $$.mime({ 'text/html': '<b>', 'text/x': 'y' })
;({ _toHtml() { return '<i>' } })"""
    outcome = javascript.run(code)
    png, value, bundle = outcome.displays
    assert base64.b64decode(png["image/png"]) == b"png"
    assert value["application/json"] == {"a": [1]}
    assert bundle == {"text/html": "<b>", "text/x": "y"}
    assert outcome.result["text/html"] == "<i>"


DRAWS = """JSON.stringify([
  Math.random(), crypto.randomUUID(), require('crypto').randomBytes(8).toString('hex'), require('crypto').randomInt(1e9),
  require('crypto').randomUUID(), [...crypto.getRandomValues(new Uint32Array(2))].join(),
])"""


def test_random_values_are_well_formed(javascript):
    code = f"""
const c = require('crypto')
const numbers = Array.from({{ length: 100_000 }}, Math.random)
const mean = numbers.reduce((a, b) => a + b) / numbers.length
const integers = Array.from({{ length: 1000 }}, () => c.randomInt(3, 6))
const filled = Buffer.alloc(8); c.randomFillSync(filled, 2, 4)
const later = await new Promise((resolve, reject) => c.randomBytes(4, (e, b) => e ? reject(e) : resolve(b.length)))
const between = await new Promise((resolve, reject) => c.randomInt(5, (e, n) => e ? reject(e) : resolve(n >= 0 && n < 5)))
;[Math.abs(mean - 0.5) < 0.01, numbers.every((n) => n >= 0 && n < 1), [...new Set(integers)].sort().join(''), later, between,
  filled.subarray(0, 2).equals(Buffer.alloc(2)) && filled.subarray(6).equals(Buffer.alloc(2)),
  /^[0-9a-f]{{8}}-[0-9a-f]{{4}}-4[0-9a-f]{{3}}-[89ab][0-9a-f]{{3}}-[0-9a-f]{{12}}$/.test(crypto.randomUUID())]"""
    text = javascript.run(code).text
    assert " ".join(text.split()) == "[ true, true, '345', 4, true, true, true ]"
    assert javascript.run("require('crypto').randomInt('x')").error["ename"] == "TypeError"


def test_reseeding_is_silent_and_changes_the_generator(javascript):
    outcome = javascript.run('globalThis[Symbol.for("hearth.reseed")]()', silent=True)
    assert outcome.reply["status"] == "ok" and not outcome.stderr
    first, second = (json.loads(javascript.run(DRAWS).text[1:-1]) for _ in range(2))
    assert not set(first) & set(second)


def test_a_forged_message_is_ignored(javascript):
    key = javascript.client.session.key
    javascript.client.session.key = b"wrong"
    javascript.send("forged = true")
    javascript.client.session.key = key
    assert javascript.run("typeof forged").text == "'undefined'"


@pytest.mark.parametrize("code", ["'\\0\\u2028\\ud800'", "console.log('\\ud800')", "// \u2028\n'\u2028'", "'\U0001f600'"])
def test_odd_text_does_not_break_the_kernel(javascript, code):
    javascript.run(code)
    assert javascript.run("1").text == "1"
