"""What several tests of the image processor share."""

import pytest


@pytest.fixture
def path_of(tmp_path):
    def write(content: bytes) -> str:
        path = tmp_path / "bad.img"
        path.write_bytes(content)
        return str(path)

    return write
