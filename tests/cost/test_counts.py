"""What of a folder is counted, and limits at their exact value."""

from PIL import Image

from internvlx_hf import cost


def test_hidden_images_of_a_folder_are_not_counted(tmp_path):
    (tmp_path / "below").mkdir()
    for name in ("a.png", ".hidden.png", "below/b.png", "below/.c.png"):
        Image.new("RGB", (9, 7)).save(tmp_path / name)
    assert [name.removeprefix(f"{tmp_path}/") for name in cost.find_images([tmp_path]).names] == [
        "a.png",
        "below/b.png",
    ]
