"""The README's Python examples run as printed."""

import pathlib
import re

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text()


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert blocks
    scope = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), scope)


def test_commands_exist():
    from fisher_jax import cli

    commands = re.findall(r"^ {4}fisher-jax (.*?)(?: #.*)?$", README, flags=re.M)
    assert commands
    for line in commands:
        cli.parser().parse_args(line.split())
