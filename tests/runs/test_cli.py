"""The one entry point: every command is reached, and nothing heavy is loaded before it is needed."""

import importlib
import subprocess
import sys
import tomllib

import pytest
from common import PROJECT

from tracelift_lib.problems.files import InputError
from tracelift_lib.runs import cli


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_a_command_gets_the_other_arguments_and_its_status_is_returned(command, monkeypatch):
    module, function, _ = cli.COMMANDS[command]
    given = []
    monkeypatch.setattr(
        importlib.import_module(f"tracelift_lib.{module}"), function, lambda arguments: given.append(arguments) or 7
    )
    assert cli.main([command, "--help", "x", "--override", "a=b"]) == 7
    assert given == [["--help", "x", "--override", "a=b"]]


def test_bad_input_is_told_in_one_line_and_ends_with_2(monkeypatch, capsys):
    def fail(arguments):
        raise InputError("a key is missing")

    monkeypatch.setattr("tracelift_lib.runs.run_notebooks.main", fail)
    assert cli.main(["run"]) == 2 and capsys.readouterr().err == "error: a key is missing\n"


@pytest.mark.parametrize("arguments", [[], ["nosuch"], ["--preset", "tiny"]])
def test_no_or_an_unknown_command_names_those_there_are(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2 and "usage: tracelift" in capsys.readouterr().err


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_its_own_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0 and f"usage: tracelift {command}" in capsys.readouterr().out


def test_help_is_quick():
    """None of the large packages is loaded for it."""
    code = (
        "import sys\nfrom tracelift_lib.runs import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "print({'torch', 'transformers', 'pandas', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.stdout.endswith("set()\n") and all(command in done.stdout for command in cli.COMMANDS)


def test_the_command_is_installed_under_its_name():
    scripts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"tracelift": "tracelift_lib.runs.cli:main"}
