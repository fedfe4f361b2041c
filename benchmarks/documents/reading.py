"""How well a text was read: words and letters right."""

from collections.abc import Sequence

MISSING = "·"


def edits(truth: Sequence, read: Sequence) -> int:
    """The fewest insertions, deletions and replacements that turn one sequence into the other (Levenshtein's distance)."""
    row = list(range(len(read) + 1))
    for above, wanted in enumerate(truth, start=1):
        diagonal, row[0] = row[0], above
        for place, found in enumerate(read, start=1):
            diagonal, row[place] = row[place], min(diagonal + (wanted != found), row[place] + 1, row[place - 1] + 1)
    return row[-1]


def share_right(truths: Sequence[Sequence], reads: Sequence[Sequence]) -> float:
    """1 − edits / length of the truth, over all pages together; a page counts at least 0, however much was added to it."""
    right = sum(max(0, len(truth) - edits(truth, read)) for truth, read in zip(truths, reads, strict=True))
    return right / sum(map(len, truths))


def words_right(truths: Sequence[str], reads: Sequence[str]) -> float:
    """Share of words that are right, a word being what white space separates, with its punctuation."""
    return share_right([text.split() for text in truths], [text.split() for text in reads])


def letters_right(truths: Sequence[str], reads: Sequence[str]) -> float:
    """The same for characters, spaces included."""
    return share_right(truths, [" ".join(text.split()) for text in reads])


def marked(truth: Sequence[str], read: Sequence[str]) -> list[tuple[str, bool]]:
    """The words read, each with whether it is right; a missing word is `MISSING`, which is not."""
    rows, columns = len(truth) + 1, len(read) + 1
    costs = [[row + column for column in range(columns)] for row in range(rows)]
    for row in range(1, rows):
        for column in range(1, columns):
            replaced = costs[row - 1][column - 1] + (truth[row - 1] != read[column - 1])
            costs[row][column] = min(replaced, costs[row - 1][column] + 1, costs[row][column - 1] + 1)
    words, row, column = [], rows - 1, columns - 1
    while row or column:
        if row and column:
            is_right = truth[row - 1] == read[column - 1]
            if costs[row][column] == costs[row - 1][column - 1] + (not is_right):
                row, column = row - 1, column - 1
                words.append((read[column], is_right))
                continue
        if column and costs[row][column] == costs[row][column - 1] + 1:
            column -= 1
            words.append((read[column], False))
        else:
            row -= 1
            words.append((MISSING, False))
    return words[::-1]
