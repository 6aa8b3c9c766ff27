"""The runner of pages: what it takes, what it compares, and that it sees a page that is not true."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pages import Console, File, PageError, Seat, Typed, matches, read_page, run_page


def page(directory: Path, text: str) -> Path:
    path = directory / "page.md"
    path.write_text(text.replace("'''", "```"))
    return path


def run(directory: Path, text: str) -> list[Typed]:
    work = directory / "work"
    work.mkdir()
    return run_page(read_page(page(directory, text)), work, lambda options: Seat({**os.environ, **options}))


@pytest.mark.parametrize(
    ("says", "printed"),
    [
        ("one", "one"),
        ("a   b", "a b"),
        ("job ... ran", "job 42 ran"),
        ("...", ""),
        ("...", "a\nb"),
        ("a\n...\nd", "a\nb\nc\nd"),
        ("a\n...\nd", "a\nd"),
        ("...\nb\n...", "a\nb\nb\nc"),
        ("...\nb", "b\nb"),
        ("end   ", "end"),
        ("a (b) [c] $d", "a (b) [c] $d"),
    ],
)
def test_matches(says: str, printed: str) -> None:
    assert matches(says.splitlines(), printed.splitlines())


@pytest.mark.parametrize(
    ("says", "printed"),
    [
        ("one", "two"),
        ("one", ""),
        ("", "one"),
        ("ab", "a b"),
        ("a.c", "abc"),
        ("a\n...\nd", "a\nb\nc"),
        ("a\n...\na", "a"),
        ("...\nb\n...\nb", "a\nb\nc"),
        ("job ... ran", "job 42 failed"),
    ],
)
def test_does_not_match(says: str, printed: str) -> None:
    assert not matches(says.splitlines(), printed.splitlines())


def test_a_page_is_run_in_order_with_its_files_and_its_people(tmp_path: Path) -> None:
    text = """
<!-- page: WHO=ada -->
<!-- file: in/greet.sh -->
'''bash
echo "hello $WHO"
'''
'''console
$ cd in
$ sh greet.sh
hello ada
$ for each in 1 2; do
>   echo $each
> done
1
2
$ ls missing
ls: ...
$ echo $?
2
'''
<!-- run: WHO=bob -->
'''console
$ sh in/greet.sh
hello bob
'''
<!-- not run: nobody has that here -->
'''console
$ rm -r /nonexistent
'''
'''console
$ basename "$PWD"
in
'''
"""
    assert [typed.code for typed in run(tmp_path, text)] == [0, 0, 0, 2, 0, 0, 0]
    steps = read_page(tmp_path / "page.md").steps
    assert isinstance(steps[0], File)
    assert [step.why_not for step in steps if isinstance(step, Console)] == ["", "", "nobody has that here", ""]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("'''console\n$ echo a\nb\n'''\n", "page.md:2: `echo a` prints something else\n"),
        ("'''console\n$ echo a; false\na\n'''\n", "page.md:2: `echo a; false` ended with 1"),
        ("'''console\n$ true\n$ exit 3\n'''\n", "page.md:3: `exit 3` ended its shell"),
        ("'''console\necho a\n'''\n", "page.md:2: a console block begins with a `$ ` line"),
        ("'''\n$ echo a\n'''\n", "page.md:2: commands stand in ```console blocks"),
        ("'''bash\necho a\n'''\n", "page.md:2: commands stand in ```console blocks"),
        ("'''console\n$ echo a\n", "page.md:1: the block has no end"),
        ("<!-- run: user=bob -->\n\nText.\n", "page.md:3: a comment for a block, and no block follows"),
    ],
)
def test_a_page_that_is_not_true_or_not_right(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(PageError) as raised:
        run(tmp_path, text)
    assert says in str(raised.value)


def test_a_difference_is_shown_line_by_line(tmp_path: Path) -> None:
    with pytest.raises(PageError) as raised:
        run(tmp_path, "'''console\n$ echo id 17; echo b\nid ...\nc\n'''\n")
    assert "\n id ...\n-c\n+b\n" in str(raised.value)
