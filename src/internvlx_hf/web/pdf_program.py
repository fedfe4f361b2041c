# Copyright 2026 The InternVL-X for Transformers authors. Licensed under the Apache License, Version 2.0.
"""A program that renders a page of a stranger's PDF. PDFium can need hours and all memory for a kilobyte, or crash.

Arguments: the PDF's name, the page's number, the maximum number of pixels. Standard input: the PDF. Standard output:
the page, a PNG. The exit status is `EXPECTED` if standard error has a message for the visitor.
"""

import io
import sys
from contextlib import suppress

import internvlx_cli

EXPECTED = 3
MAX_MEMORY = 2 * 2**30


def main(name: str, number: str, max_pixels: str) -> int:
    internvlx_cli.is_program = True  # nothing here needs torch, which takes seconds to import
    from internvlx_hf.processing.image_files import ImageAccess
    from internvlx_hf.processing.pdf_files import open_pages

    with suppress(ImportError, ValueError):  # Windows and macOS have no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    access, png = ImageAccess(max_pixels=int(max_pixels)), io.BytesIO()
    try:
        (page,) = open_pages(sys.stdin.buffer.read(), repr(name), access, (int(number), int(number)), name)
        page.save(png, "PNG")
    except ValueError as error:
        print(error, file=sys.stderr)
        return EXPECTED
    sys.stdout.buffer.write(png.getvalue())
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
