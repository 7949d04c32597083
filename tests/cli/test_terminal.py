from __future__ import annotations

import pytest

from r2d_edge.cli.terminal import BAR_CELLS, NoteView, Paragraph, TableWriter, bar
from r2d_edge.decision import Decision

LABELS = ("emergent", "urgent", "non-urgent")


def decision(**changes: object) -> Decision:
    fields: dict[str, object] = {
        "id": "a",
        "label": "urgent",
        "probabilities": {"emergent": 0.1, "urgent": 0.85, "non-urgent": 0.05},
        "model": "tiny 1 sha256:00",
        "ms": {"label": 12.0},
    }
    return Decision(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(("share", "full"), [(0.0, 0), (0.5, BAR_CELLS // 2), (1.0, BAR_CELLS)])
def test_a_bar_is_as_long_as_its_share(share: float, full: int) -> None:
    assert bar(share) == ("█" * full).ljust(BAR_CELLS)


def test_bars_never_leave_their_cells() -> None:
    lengths = [bar(thousandth / 1000) for thousandth in range(1001)]
    assert {len(line) for line in lengths} == {BAR_CELLS}
    filled = [line.count("█") for line in lengths]
    assert filled == sorted(filled)


def test_the_label_stands_before_any_rationale(capsys: pytest.CaptureFixture[str]) -> None:
    view = NoteView(LABELS, rationale=True)
    view.label(decision())
    first = capsys.readouterr().out
    assert first.startswith("urgent\n")
    assert first.count("%") == 3
    view.token("Stable ")
    view.token("vital si")
    assert capsys.readouterr().out == "  Stable vital"
    view.token("gns.")
    view.close(decision(rationale="Stable vital signs."))
    assert capsys.readouterr().out == " signs.\n\ntiny 1 sha256:00 · label 12 ms\n"


def test_a_rationale_that_came_whole_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    view = NoteView(LABELS, rationale=True)
    view.label(decision())
    view.close(decision(rationale="All at once."))
    assert capsys.readouterr().out.count("All at once.") == 1


def test_the_reason_of_an_abstention_leads(capsys: pytest.CaptureFixture[str]) -> None:
    view = NoteView(LABELS, rationale=False)
    view.label(decision(abstained=True, reason="truncated", truncated=True))
    out = capsys.readouterr().out
    assert out.startswith("ABSTAINED: truncated (the end of the note did not fit and was not read)\n")
    assert "Most probable: urgent 85 %" in out
    view.label(decision(label=None, probabilities={}, abstained=True, reason="empty note"))
    assert "No label was given" in capsys.readouterr().out


def test_a_label_that_is_not_the_most_probable_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    view = NoteView(LABELS, rationale=False)
    view.label(decision(label="emergent"))
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert (first, second) == ("emergent", "Chosen by costs or rounding up; most probable: urgent 85 %")
    view.label(decision(label="emergent", abstained=True, reason="low confidence"))
    out = capsys.readouterr().out
    assert "Chosen by costs or rounding up: emergent 10 %; most probable: urgent 85 %" in out
    assert "Most probable: emergent" not in out
    view.label(decision())
    assert "rounding" not in capsys.readouterr().out


def test_a_table_has_label_sets_where_the_bundle_has(capsys: pytest.CaptureFixture[str]) -> None:
    for label_set, shown in ((("emergent", "urgent"), True), (None, False)):
        table = TableWriter(rationale=False)
        table.write(decision(label_set=label_set))
        table.write(decision(id="b", label=None, probabilities={}, abstained=True, reason="empty note"))
        table.close()
        out = capsys.readouterr().out
        assert ("one of" in out) is shown
        assert ("emergent, urgent" in out) is shown


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_a_table_fits_its_terminal_and_loses_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    table = TableWriter(rationale=True)
    words = "one two three four five six seven eight nine ten"
    table.write(decision(label_set=("emergent", "urgent", "non-urgent"), rationale=words))
    table.write(decision(id="b", label_set=("urgent",), abstained=True, reason="low confidence", rationale=words))
    table.close()
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= columns
    assert "85 %" in out
    assert "…" not in out
    if columns < 60:
        return  # words are folded there
    for word in ("emergent", "non-urgent", "urgent", "low", "confidence", *words.split()):
        assert word in out, word


def test_a_conformal_set_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    NoteView(LABELS, rationale=False).label(decision(label_set=("emergent", "urgent")))
    assert "one of: emergent, urgent" in capsys.readouterr().out


def test_words_are_never_split_however_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    text = "one two three four five six seven eight nine ten eleven twelve"
    shown = set()
    for size in (1, 2, 3, 7, 100):
        paragraph = Paragraph(width=24)
        for start in range(0, len(text), size):
            paragraph.add(text[start : start + size])
        paragraph.end()
        shown.add(capsys.readouterr().out)
    [out] = shown
    assert out.split() == text.split()
    assert max(map(len, out.splitlines())) <= 22
    assert all(line.startswith("  ") and not line.startswith("   ") for line in out.splitlines())


def test_nothing_acts_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "a\x1b[31mred\x1b]0;title\x07\x9b2J\u202eb\r\x08"
    view = NoteView(LABELS, rationale=True)
    view.label(decision(reason=evil, abstained=True))
    view.token(evil)
    view.close(decision(rationale=evil, model=evil))
    table = TableWriter(rationale=True)
    table.write(decision(id=evil, rationale=evil, reason=evil, abstained=True, model=evil))
    table.close()
    out = capsys.readouterr().out
    assert not set(out) & set("\x1b\x9b\x07\x08\r\u202e")
    assert "title" not in out


def test_a_table_counts_and_takes_brackets_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    table = TableWriter(rationale=True)
    table.write(decision(id="[red]x[/red]", rationale="seen [bold]"))
    table.write(decision(id="b", label=None, probabilities={}, abstained=True, reason="empty note"))
    table.close()
    out = capsys.readouterr().out
    assert "[red]x[/red]" in out
    assert "seen [bold]" in out
    assert "2 notes, 1 abstained" in out


def test_an_empty_table_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    TableWriter(rationale=True).close()
    assert capsys.readouterr().out == ""
