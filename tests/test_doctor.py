import sys
from importlib.metadata import PackageNotFoundError

import pytest
from typer.testing import CliRunner

from faceprior.cli import doctor
from faceprior.cli.app import app

REQUIRES = ["numpy>=1.26", "gradio>=6.31,<7; extra == 'web'", "av>=14; extra == 'video'", "old; python_version < '3'"]


@pytest.fixture
def installed(monkeypatch):
    """Sets which packages there are."""

    def install(**versions):
        def version(name):
            if name not in versions:
                raise PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(doctor, "requires", lambda _: REQUIRES)
        monkeypatch.setattr(doctor, "version", version)
        return {finding.what: finding for finding in doctor.examine()}

    return install


def test_a_complete_machine_needs_nothing(installed):
    pytest.importorskip("torch")
    findings = installed(numpy="2.1", gradio="6.31", av="18.0")
    assert findings["packages"].found == "numpy 2.1"
    assert findings["extra web"].advice == findings["extra video"].advice == ""
    assert not any(finding.fatal for finding in findings.values())


def test_an_extra_that_is_missing_or_too_new_is_named_with_its_command(installed):
    findings = installed(numpy="2.1", gradio="7.0")
    assert "gradio 7.0 (needs <7,>=6.31)" in findings["extra web"].found
    assert findings["extra web"].advice == "pip install 'faceprior[web]'"
    assert "av is missing" in findings["extra video"].found


def test_an_old_package_is_fatal(installed):
    found = installed(numpy="1.20", gradio="6.31", av="18.0")["missing"]
    assert found.fatal
    assert found.found == "numpy 1.20 (needs >=1.26)"
    assert "pip install --upgrade faceprior" in found.advice


def test_the_command_prints_devices_and_licences():
    pytest.importorskip("torch")
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    for word in ("device", "cpu", "JPEG", "cache"):
        assert word in result.output


def test_without_torch_the_doctor_still_speaks(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    devices = next(finding for finding in doctor.examine() if finding.what == "devices")
    assert devices.fatal
    assert "torch" in devices.found
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 3
