"""PDF files for tests."""

import io
from collections.abc import Sequence

from PIL import Image

COLOURS = ("red", "blue", "lime")
# encrypted by the user's password, with the smallest dictionaries that PDFium reads
LOCKED = b"""%%PDF-1.4
1 0 obj <</Type/Catalog/Pages 2 0 R>> endobj
2 0 obj <</Type/Pages/Kids[3 0 R]/Count 1>> endobj
3 0 obj <</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>> endobj
4 0 obj <</Filter/Standard/V 1/R 2/P -4/O<%s>/U<%s>>> endobj
trailer <</Root 1 0 R/Encrypt 4 0 R/ID[<00><00>]>>
%%%%EOF
""" % (b"00" * 32, b"00" * 32)


def pdf(*sizes: tuple[int, int], **kwargs) -> bytes:
    """A PDF with a page of each size in points, each of one of `COLOURS`."""
    first, *others = (Image.new("RGB", size, COLOURS[i % 3]) for i, size in enumerate(sizes))
    stream = io.BytesIO()
    first.save(stream, "PDF", save_all=True, append_images=others, resolution=72, **kwargs)
    return stream.getvalue()


def levels(image: Image.Image) -> tuple[int, ...]:
    """The colour of an image's middle, rounded."""
    pixel: Sequence[int] = image.getpixel((image.width // 2, image.height // 2))
    return tuple(round(level / 255) for level in pixel)


def endless_pdf(depth: int = 12) -> bytes:
    """A PDF of a page of 10 forms, each of which has 10 forms, and so on."""
    form = "<</Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</F %d 0 R>>>>/Length 60>>stream\n"
    content = "/F Do " * 10 + "\nendstream"
    forms = [f"{5 + i} 0 obj {form % (6 + i)}{content} endobj" for i in range(depth)]
    return "\n".join(
        [
            "%PDF-1.4\n1 0 obj <</Type/Catalog/Pages 2 0 R>> endobj",
            "2 0 obj <</Type/Pages/Kids[3 0 R]/Count 1>> endobj",
            "3 0 obj <</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Contents 4 0 R/Resources<</XObject<</F 5 0 R>>>>>> endobj",
            f"4 0 obj <</Length 60>>stream\n{content} endobj",
            *forms,
            f"{5 + depth} 0 obj <</Type/XObject/Subtype/Form/BBox[0 0 9 9]/Length 11>>stream\n0 0 9 9 re f\nendstream endobj",
            "trailer <</Root 1 0 R>>\n%%EOF",
        ]
    ).encode()
