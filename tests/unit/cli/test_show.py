import io
from collections.abc import Callable

import pytest
from rich.console import Console

from server.cli import show

ID = "ep_01a1fedd34f02c5033cc7d2b6d03"
SHORT = {"id": lambda row: row["id"], "state": lambda row: row["state"], "at": lambda _row: "2026-11-21 16:07:52"}
WIDE = {**SHORT, **{f"column {number}": lambda _row: "a value" for number in range(6)}}
PROSE = {"id": lambda row: row["id"], "reason": lambda _row: "the total is not the sum of the lines, " * 3}


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], io.StringIO]:
    def make(width: int) -> io.StringIO:
        out = io.StringIO()
        console = Console(file=out, width=width, force_terminal=True, color_system=None, highlight=False)
        monkeypatch.setattr(show, "standard_console", lambda: console)
        return out

    return make


def lines(out: io.StringIO) -> list[str]:
    return [line.rstrip() for line in out.getvalue().splitlines() if line.strip()]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("columns", [SHORT, WIDE, PROSE])
def test_on_a_terminal_nothing_is_cut_and_no_line_is_too_long(terminal, width, columns):
    out = terminal(width)
    rows = [{"id": ID, "state": "unverified"}, {"id": f"{ID}x", "state": "recovered"}]
    show.print_things(rows, columns, as_json=False)
    shown = lines(out)
    assert all(len(line) <= width for line in shown)
    words = out.getvalue().split()
    for row in rows:
        for render in columns.values():
            assert set(render(row).split()) <= set(words)
    assert "…" not in out.getvalue()


def test_what_fits_is_a_table(terminal):
    out = terminal(80)
    show.print_things([{"id": ID, "state": "unverified"}], SHORT, as_json=False)
    header, rule, row = lines(out)
    assert header.split() == ["id", "state", "at"]
    assert set(rule.strip()) == {"─"}
    assert row.split() == [ID, "unverified", "2026-11-21", "16:07:52"]


def test_what_does_not_fit_stands_below_its_name_and_keeps_pairs_together(terminal):
    out = terminal(80)
    show.print_things([{"id": ID, "state": "unverified"}], WIDE, as_json=False, title="These:")
    title, head, *rest = lines(out)
    assert (title, head) == ("These:", ID)
    assert rest[0].startswith("  state unverified  at 2026-11-21 16:07:52")
    assert "\n".join(rest).count("column 3 a value") == 1


def test_a_row_is_one_line_where_the_output_is_no_terminal(capsys):
    rows = [{"id": ID, "state": "two\nlines " + "x" * 300}]
    show.print_things(rows, WIDE, as_json=False)
    assert len(lines(io.StringIO(capsys.readouterr().out))) == 3


def test_a_long_cell_takes_nothing_from_the_others_where_the_output_is_no_terminal(capsys):
    show.print_things(
        [{"id": ID, "state": "x" * 3000}], WIDE, as_json=False, title="a title longer than the table " * 40
    )
    title, header, _rule, row = lines(io.StringIO(capsys.readouterr().out))
    assert title.count("longer") == 40
    assert header.split()[:3] == ["id", "state", "at"]
    assert row.split()[:2] == [ID, "x" * 3000]
    assert row.count("a value") == 6


@pytest.mark.parametrize(("value", "said"), [(0.0, "0.000"), (-0.00003, "-3.0e-05"), (0.234, "0.234")])
def test_a_small_figure_is_told_from_none(capsys, value, said):
    show.print_fields({"kl": value})
    assert capsys.readouterr().out.split() == ["kl", said]
