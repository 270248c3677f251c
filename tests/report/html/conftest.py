"""The report of a study, made once."""

from __future__ import annotations

import pytest

from nxm.report.evidence import read_evidence
from nxm.report.html import document
from reported_study import Made, Page, make_folder


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = make_folder(tmp_path_factory.mktemp("reported"))
    return Made(folder, read_evidence(folder), document.render(folder))


@pytest.fixture(scope="session")
def page(made: Made) -> Page:
    return Page(made.text)
