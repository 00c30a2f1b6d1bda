"""The README says of speed what bench/RESULTS.md says, and nothing else."""

import re
from pathlib import Path

import pytest
import readme

ROOT = Path(__file__).parents[2]
RESULTS = """# What was measured

## Machine

| what | value |
| --- | --- |
| processor | A CPU, 2 CPUs, AVX2 |
| kernel | 6.1 |
| devices | 2048 MiB, 5 rounds |
| commit | abc |

## scan

| id | case | ours | ceiling | ratio | min..max | first | goal | verdict | note |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| S1 | unchanged scan, M / fio 8M q2 | 5.27 GB/s | 6.50 GB/s | 0.805 | 0.7..0.9 | >= 0.65 | >= 0.8 | goal | a \\| b |

## changed

| case | who | CPU s/GiB source | target | both | peak MiB | wire / changed | read / changed | p99 / alone |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
| 1 % at random changed | rsync |  |  | 2.500 |  | 1.400 |  |  |
| 1 % at random changed | qrep | 0.200 | 0.010 | 0.210 |  | 1.004 | 1.200 |  |

## cli

| id | case | ours | ceiling | ratio | min..max | first | goal | verdict | note |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| P3 | qrep status, warm | 91 ms |  | 91 | 85..99 | <= 200 | <= 100 | goal |  |
"""


def test_the_readme_has_the_figures_of_the_results():
    text, results = (ROOT / "README.md").read_text(), (ROOT / "bench/RESULTS.md").read_text()
    drawn = {picture.stem for picture in (ROOT / "bench/pictures").glob("*.svg")}
    assert readme.replaced(text, results, drawn) == text, "python bench/readme.py writes it anew"
    figures = re.findall(r"^\| .* \| .* \| .* \| .* \|$", readme.block(results), re.MULTILINE)
    assert len(figures) >= 8


def test_every_picture_that_the_documents_show_is_there():
    for document in ("README.md", "bench/RESULTS.md"):
        for shown in re.findall(r"\]\(((?:bench/)?pictures/[^)]+)\)", (ROOT / document).read_text()):
            assert (ROOT / document).parent.joinpath(shown).is_file(), shown


def test_a_row_of_the_results_is_a_row_of_the_table_and_a_figure_without_a_ceiling_has_no_ratio():
    block = readme.block(RESULTS, {"full-copy-over-tcp"})
    assert "| unchanged scan, memory device | 5.27 GB/s | fio read | 0.805 |" in block
    assert "| `qrep status` | 91 ms |  |  |" in block
    assert "| the same: bytes on the wire |  | bytes changed | 1.004 |" in block
    assert "![full copy over tcp](bench/pictures/full-copy-over-tcp.svg)" in block and "size.svg" not in block
    assert "A CPU, 2 CPUs, AVX2, kernel 6.1, loop devices of 2048 MiB, commit abc" in block


def test_only_what_stands_between_the_marks_is_written():
    text = f"above\n{readme.BEGIN}\nold\n{readme.END}\nbelow\n"
    written = readme.replaced(text, RESULTS, set())
    assert written.startswith("above\n") and written.endswith("\nbelow\n") and "old" not in written
    with pytest.raises(ValueError, match="marks"):
        readme.replaced("no marks", RESULTS, set())
