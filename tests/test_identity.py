"""pico.identity: what an entry point can import, and nothing else, is part of its results' identity."""

import pytest

from pico import identity


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A small project in place of this one; gives a function that writes a file of it and forgets what was read."""
    caches = [each for each in vars(identity).values() if hasattr(each, "cache_clear")]

    def write(name, text=""):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for each in caches:
            each.cache_clear()

    monkeypatch.setattr(identity, "ROOT", tmp_path)
    write("pico/__init__.py")
    write("pico/errors.py", "class PicoError(Exception): ...\n")
    write("pico/part/__init__.py", "from pico.part.first import one\n")
    write("pico/part/first.py", "import numpy\nfrom pico.errors import PicoError\none = 1\n")
    write("pico/part/later.py", "def f():\n    from pico.other import deep\n    import scipy.stats\n")
    write("pico/part/templates/page.j2", "hello")
    write("pico/part/inner/__init__.py", "inner = 1\n")
    write("pico/part/inner/note.txt", "of another package")
    write("pico/other/__init__.py")
    write(
        "pico/other/deep.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n    from pico.part import inner\n",
    )
    write("pico/unused.py", "x = 1\n")
    yield write
    for each in caches:
        each.cache_clear()


def test_the_closure_follows_imports_wherever_they_stand(project):
    assert identity.closure("pico.part.later") == (
        "pico", "pico.other", "pico.other.deep", "pico.part", "pico.part.first", "pico.part.later",
    )  # fmt: skip


def test_data_files_beside_a_module_are_part_of_it_and_empty_files_are_not(project):
    assert sorted(identity.code("pico.part.later")) == [
        "pico/other/deep.py", "pico/part/__init__.py", "pico/part/first.py", "pico/part/later.py",
        "pico/part/templates/page.j2",
    ]  # fmt: skip


def test_libraries_are_those_that_the_closure_imports_at_run_time(project):
    assert list(identity.libraries("pico.part.later")) == ["numpy", "scipy"]
    project("pico/other/deep.py", "import a_package_that_is_not_there\n")
    assert identity.libraries("pico.part.later")["a-package-that-is-not-there"] == "none"


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("pico/other/deep.py", True),
        ("pico/part/templates/page.j2", True),
        ("pico/part/__init__.py", True),
        ("pico/errors.py", False),
        ("pico/unused.py", False),
        ("pico/part/inner/note.txt", False),
    ],
)
def test_an_edit_changes_the_identity_of_what_runs_it_alone(project, file, changes):
    before = identity.identity("pico.part.later")
    project(file, "# edited\n")
    assert (identity.identity("pico.part.later") != before) == changes


def test_a_name_that_is_no_module_is_refused(project):
    with pytest.raises(ValueError, match=r"pico\.nothing"):
        identity.closure("pico.nothing")
