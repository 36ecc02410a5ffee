"""Runs a sample statement by statement, as at Python's prompt, and draws the session as an SVG.

Usage: record.py SAMPLE PICTURE
"""

import ast
import contextlib
import io
import re
import sys
import time
from pathlib import Path

from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.syntax import Syntax
from rich.text import Text

WIDTH = 100
# Columns at the right end of a statement, for the time that it took.
TIME_WIDTH = 7


def main(sample: Path, picture: Path) -> None:
    console = Console(record=True, width=WIDTH, force_terminal=True, color_system="truecolor", file=io.StringIO())
    highlighter = Syntax("", "python", theme="monokai", background_color="default")
    source = sample.read_text()
    console.print(Text("$ python3", style="bold"))
    namespace: dict[str, object] = {}
    for statement in ast.parse(source).body:
        text = ast.get_source_segment(source, statement) or ""
        output = io.StringIO()
        start = time.monotonic()
        with contextlib.redirect_stdout(output):
            exec(compile(ast.Module([statement], []), str(sample), "exec"), namespace)  # noqa: S102
        elapsed = time.monotonic() - start
        line = Text(">>> ", style="bold green") + highlighter.highlight(text)
        line.rstrip()
        if not isinstance(statement, ast.Import | ast.ImportFrom):
            line.pad_right(WIDTH - len(line) - TIME_WIDTH)
            line.append(f"{elapsed:.2f} s", style="dim")
        console.print(line)
        if printed := output.getvalue().strip():
            console.print(Text(printed))
    # Without the fonts that the format would load from another server.
    code_format = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    svg = console.export_svg(title="Hearth", code_format=code_format)
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_text(svg)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
