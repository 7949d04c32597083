from pathlib import Path

import pytest

from r2d_edge.errors import InputError
from r2d_edge.report.output import check_output, write_report

FILES = {"report.json": "{}\n", "report.html": "<p>é\ud800</p>"}


def test_a_report_is_written_whole(tmp_path):
    target = tmp_path / "new" / "report"
    check_output(target, [], force=False)
    write_report(target, FILES)
    assert (target / "report.json").read_bytes() == b"{}\n"
    assert (target / "report.html").read_text(encoding="utf-8") == "<p>é\\ud800</p>"
    assert list(target.parent.iterdir()) == [target]


def test_a_report_is_replaced_only_when_asked(tmp_path):
    target = tmp_path / "report"
    target.mkdir()
    check_output(target, [], force=False)  # an empty folder holds nothing to lose
    write_report(target, {"report.json": "old"})
    with pytest.raises(InputError, match=r"holds a report: .* --force"):
        check_output(target, [], force=False)
    check_output(target, [], force=True)
    write_report(target, FILES)
    assert sorted(path.name for path in target.iterdir()) == ["report.html", "report.json"]
    assert list(tmp_path.iterdir()) == [target]


def test_something_else_is_never_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    for force in (False, True):
        with pytest.raises(InputError, match="holds something else than a report"):
            check_output(tmp_path, [], force=force)
        with pytest.raises(InputError, match="is not a folder"):
            check_output(tmp_path / "notes.txt", [], force=force)
        with pytest.raises(InputError, match="is not a folder"):
            check_output(tmp_path / "notes.txt" / "report", [], force=force)
        with pytest.raises(InputError, match="holds what is compared"):
            check_output(tmp_path / "new", [tmp_path / "new" / "data.jsonl"], force=force)


def test_a_link_is_never_followed(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    try:
        link.symlink_to(tmp_path / "there", target_is_directory=True)
    except OSError:
        pytest.skip("this system lets no links be made")
    with pytest.raises(InputError, match="is not a folder"):
        check_output(link, [], force=True)


def test_what_fails_on_the_way_leaves_the_old_report(tmp_path, monkeypatch):
    target = tmp_path / "report"
    write_report(target, {"report.json": "old"})
    real = Path.replace

    def broken(self, other):
        if self.name == "finished":
            raise OSError(13, "Permission denied")
        return real(self, other)

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(InputError, match=r"cannot be put at .*: Permission denied"):
        write_report(target, FILES)
    assert (target / "report.json").read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [target]
