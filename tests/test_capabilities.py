"""The table of capabilities is what happens."""

from pathlib import Path

import numpy as np
import pytest

from keepnorm import capabilities
from keepnorm.engines import dispatch
from tests.backends import BACKENDS, NAMES, kind


def test_names_are_unique():
    assert len(BACKENDS) == len(capabilities.BACKENDS)


@pytest.mark.parametrize("name", NAMES)
def test_the_engine_is_the_one_named(name):
    k = kind(name)
    found = []
    k.run(lambda x: (found.append(dispatch.name_of(x)), x)[1], k.make(np.ones((2, 2), np.float32)))
    assert found == [BACKENDS[name].engine]


def test_meta_tensors_give_shapes_and_dtypes():
    torch = pytest.importorskip("torch")
    import keepnorm as kn

    for name in BACKENDS["torch meta"].dtypes:
        x = torch.empty(3, 4, device="meta", dtype=getattr(torch, name))
        y, m = kn.normalize(x, 1), kn.moments(x, 1)
        assert (y.device.type, tuple(y.shape), m.mean.device.type, tuple(m.var.shape)) == ("meta", (3, 4), "meta", (4,))


def test_every_backend_has_a_row():
    rows = capabilities.table().splitlines()
    assert len(rows) == 2 + len(BACKENDS)
    assert len({row.count("|") for row in rows}) == 1
    for name, row in zip(BACKENDS, rows[2:], strict=True):
        assert row.startswith(f"| {name} |")


def test_the_documentation_prints_the_table():
    page = Path(__file__).parent.parent / "docs" / "capabilities.md"
    assert page.read_text().endswith(capabilities.table().rstrip() + "\n")
