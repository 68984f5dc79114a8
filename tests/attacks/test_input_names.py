"""Names in a list of photos to predict, as somebody else may have written it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmflowers.inference.inputs import find_inputs


@pytest.mark.parametrize(
    "name", ["a\0", "~nobody\0/x", "a\0*", "a\0.zip", "http://a\0/x", "x" * 5000, "[", "~", "~nobody/x"]
)
def test_a_name_of_nothing_is_a_row_with_a_reason(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    found = list(find_inputs([name], staging=tmp_path))
    assert [(input_.source, bool(input_.reason)) for input_ in found] == ([] if name == "~" else [(None, True)])
