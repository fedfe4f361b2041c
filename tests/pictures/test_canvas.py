"""Where a canvas draws, in inches from the left and the top of the slide."""

import sys

from internvlx_hf.cli import main
from internvlx_hf.pictures.canvas import Box, Canvas


def test_lines_of_a_grid_are_around_and_between_its_cells():
    canvas = Canvas()
    canvas.grid(Box(1.0, 2.0, 3.0, 4.0), columns=3, rows=2, colour="black")
    lines = [(*line.get_xdata(), *line.get_ydata()) for line in canvas.axes.lines]
    columns = [(x, x, 2.0, 6.0) for x in (1.0, 2.0, 3.0, 4.0)]
    rows = [(1.0, 4.0, y, y) for y in (2.0, 4.0, 6.0)]
    assert lines == 2 * [*columns, *rows]  # white, then in the colour


def test_a_box_in_a_box_is_centred_and_keeps_its_shape():
    assert Box(1.0, 2.0, 4.0, 2.0).fit(100, 100) == Box(2.0, 2.0, 2.0, 2.0)
    assert Box(1.0, 2.0, 4.0, 2.0).fit(400, 100) == Box(1.0, 2.5, 4.0, 1.0)


def test_a_slide_is_titled_by_the_image_s_file(photo, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(sys.modules[Canvas.__module__], "save", lambda figure, out: found.append(figure))
    assert main(["show", str(photo), "--out", str(tmp_path / "out.png")]) == 0
    assert "photo.png, 128 × 96 pixels" in [text.get_text() for text in found[0].axes[0].texts]
