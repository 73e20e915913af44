"""What `relaymesh-node` refuses before it is a node: one line, an exit code, no trace."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from mesh.errors import ConfigError, ConflictError, RelayMeshError
from node import daemon


def test_another_distributions_packages_are_not_run_as_ours(monkeypatch):
    daemon._check_packages()
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: real("json") if name == "tools" else real(name))
    with pytest.raises(ConfigError, match=r"the package 'tools' found at .*json.* is not RelayMesh's: install"):
        daemon._check_packages()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match="found at nowhere"):
        daemon._check_packages()


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (ConfigError("no good"), 2),
        (ConflictError("no good"), 4),
        (BaseExceptionGroup("", [ExceptionGroup("", [ConflictError("no good")])]), 4),
    ],
)
def test_every_refusal_is_one_line_also_out_of_nurseries(monkeypatch, capsys, tmp_path, raised, code):
    def refuse(*_):
        raise raised

    monkeypatch.setattr(daemon.trio, "run", refuse)
    monkeypatch.setattr(daemon, "_check_ports", lambda _config: None)
    monkeypatch.setattr(sys, "argv", ["relaymesh-node", "--root", str(tmp_path / "root")])
    monkeypatch.setattr(daemon.logs, "set_up", lambda *_: None)

    with pytest.raises(SystemExit) as ended:
        daemon.main()

    assert ended.value.code == code
    assert capsys.readouterr().err == "relaymesh-node: no good\n"


@pytest.mark.parametrize(
    "raised",
    [
        BaseExceptionGroup("", [ConfigError("a"), ValueError("b")]),
        ExceptionGroup("", [ValueError("b")]),
        ValueError("b"),
    ],
)
def test_a_defect_of_ours_is_not_made_into_a_refusal(monkeypatch, tmp_path, raised):
    def fail(*_):
        raise raised

    monkeypatch.setattr(daemon.trio, "run", fail)
    monkeypatch.setattr(daemon, "_check_ports", lambda _config: None)
    monkeypatch.setattr(sys, "argv", ["relaymesh-node", "--root", str(tmp_path / "root")])
    monkeypatch.setattr(daemon.logs, "set_up", lambda *_: None)

    with pytest.raises((ExceptionGroup, ValueError)) as failure:
        daemon.main()
    assert not isinstance(failure.value, RelayMeshError)
