"""Every command's help says what the command does."""

from argparse import ArgumentParser

import pytest

from internvlx_hf.cli import COMMANDS, main


@pytest.mark.parametrize("name", COMMANDS)
def test_help_begins_with_the_usage_and_a_sentence_of_what_the_command_does(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    usage, description, *_ = capsys.readouterr().out.split("\n\n")
    assert ended.value.code == 0
    assert usage.startswith(f"usage: internvlx {name}")
    assert len(description.split()) > 5
    assert not description.startswith(("positional arguments:", "options:"))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_each_argument_is_for(name, monkeypatch):
    parsers = []
    monkeypatch.setattr(ArgumentParser, "print_help", lambda parser, file=None: parsers.append(parser))
    with pytest.raises(SystemExit):
        main([name, "--help"])
    [parser] = parsers
    assert [action.dest for action in parser._actions if not action.help] == []
