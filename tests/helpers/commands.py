"""Commands as one types them."""

from internvlx_hf.cli import main


def internvlx(capture, *arguments, status: int = 0):
    """What `internvlx` with these arguments prints, as `capsys` or `capfd` has it, where it ends with that status."""
    assert main([*map(str, arguments)]) == status
    return capture.readouterr()


def complaint(capture, *arguments) -> str:
    """The one line that says why a command failed; nothing else is printed."""
    captured = internvlx(capture, *arguments, status=1)
    assert not captured.out
    assert captured.err.startswith("internvlx: ")
    assert captured.err.count("\n") == 1
    return captured.err
