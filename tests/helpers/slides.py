"""What the slides of `internvlx show` say, and where."""

from commands import complaint


def fails(capsys, *arguments) -> str:
    return complaint(capsys, "show", *arguments)


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def boxes_of_texts(figure) -> dict[str, tuple]:
    """The box of each text on the slide, in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    return {(i, t.get_text()): t.get_window_extent(renderer) for i, t in enumerate(figure.axes[0].texts)}


def assert_readable(figure) -> None:
    """Assert that every text is on the slide and overlaps no other text."""
    boxes = list(boxes_of_texts(figure).items())
    width, height = figure.canvas.get_width_height()
    for i, (text, box) in enumerate(boxes):
        assert min(box.x0, box.y0) >= 0, text
        assert max(box.x1 - width, box.y1 - height) <= 0, text
        for other, other_box in boxes[i + 1 :]:
            assert not box.overlaps(other_box), (text, other)
