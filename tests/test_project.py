"""One truth for versions and for the repository's address; a project that speaks of itself alone."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().split()
    return {normal(name): version for name, version in (line.split("==") for line in lines)}


def requirements() -> list[str]:
    extras = [r for group in PROJECT["optional-dependencies"].values() for r in group]
    return [*PROJECT["dependencies"], *extras]


def test_every_requirement_is_pinned_and_allows_its_pin() -> None:
    from packaging.requirements import Requirement

    for text in requirements():
        requirement = Requirement(text)
        version = pins().get(normal(requirement.name))
        assert version, f"constraints.txt does not pin {requirement.name}"
        assert requirement.specifier.contains(version), f"{text} forbids the pinned {version}"


def test_the_tested_environment_is_the_pinned_one() -> None:
    for name, version in pins().items():
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # a package for another platform
        assert installed.split("+")[0] == version, f"{name} {installed} is installed, {version} is pinned"


def test_environment_yml_carries_no_second_truth() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert pip["pip"] == ["--constraint constraints.txt", "--editable .[book,test]"]
    assert f"python{PROJECT['requires-python']}" in conda
    assert set(PROJECT["optional-dependencies"]) == {"book", "dac", "onnx", "pdf", "peers", "ray", "test"}
    for name in conda[1:]:
        assert not re.search(r"[<>=]", name), f"{name}: versions stand in constraints.txt"


def test_files_that_name_the_repository_agree() -> None:
    address = PROJECT["urls"]["Repository"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["repository-code"] == address
    assert citation["version"] == PROJECT["version"] == metadata.version("caml_core")


def test_results_carry_their_provenance() -> None:
    from caml_core.runs.records import read_records

    files = sorted((ROOT / "results").glob("*.json"))
    assert files
    for file in files:
        for record in read_records(file):
            found = record["provenance"]
            assert found["command"].startswith(
                ("python -m caml_core run", "python benchmarks/", "python -m benchmarks.", "python results/studies/")
            )
            assert re.fullmatch(r"[0-9a-f]{12}(\+changes)?", found["commit"])
            assert found["device"]
            assert found["versions"]["torch"]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_no_file_names_this_machine() -> None:
    """No absolute path of a machine and no package registry's host stands in a tracked file."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    forbidden = re.compile(rb"/(work|root|home)/[a-z]+/|" + b"|".join((rb"py" + rb"pi\.org", rb"npm" + rb"js\.")))
    for name in listed.decode().split("\0")[:-1]:
        file = ROOT / name
        if file.is_file():
            assert not (found := forbidden.search(file.read_bytes())), f"{name} names {found[0]!r}"
