"""What packing says of samples that are longer than a row, and where it puts the others."""

from types import SimpleNamespace

import pytest

from internvlx_hf.data.packing import pack_rows, pack_stream


class Sample(SimpleNamespace):
    def __len__(self):
        return self.length


@pytest.mark.parametrize(
    ("lengths", "told"), [([5, 30, 11, 10], ["2 samples have more than 10 tokens"]), ([5, 10], [])]
)
def test_samples_longer_than_a_row_are_counted_in_a_warning(lengths, told, monkeypatch):
    seen = []
    monkeypatch.setattr("internvlx_hf.data.packing.logger.warning", seen.append)
    pack_rows(lengths, 10)
    assert [message.partition(" and get")[0] for message in seen] == told


def test_the_row_with_the_least_room_takes_a_sample():
    """60 and 50 leave 40 and 50 of 100: 38 and 35 both fit into either, and only one way leaves room for 15."""
    lengths = [60, 50, 38, 35, 15]
    rows = sorted(sorted(lengths[index] for index in row) for row in pack_rows(lengths, 100))
    assert rows == [[15, 35, 50], [38, 60]]
    streamed = pack_stream([Sample(length=length) for length in lengths], 100)
    assert sorted(sorted(map(len, row)) for row in streamed) == rows


def test_a_stream_gives_its_fullest_row_away_and_in_the_end_all():
    lengths = [91, 99, 92, 93, 94, 95, 96, 97, 98]  # one more than rows that are open at a time
    streamed = pack_stream([Sample(length=length) for length in lengths], 100)
    assert [len(row[0]) for row in streamed] == [99, 91, 92, 93, 94, 95, 96, 97, 98]
