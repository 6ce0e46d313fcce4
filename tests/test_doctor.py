"""What `lodge doctor` finds on this machine, and on machines that lack something."""
import json
import os
import shutil
import subprocess

import pytest


@pytest.fixture
def doctor(bin_folder, tmp_path):
    def run(*arguments, program=f"{bin_folder}/lodge", **env):
        env = {**os.environ, "XDG_DATA_HOME": str(tmp_path / "data"), **env}
        result = subprocess.run([program, "doctor", *arguments], capture_output=True, text=True,
                                timeout=60, env=env)
        assert result.stderr == ""
        return result

    def rows(**how):
        result = run("--format", "json", **how)
        found = {row["name"]: row for row in json.loads(result.stdout)}
        assert {row["verdict"] for row in found.values()} <= {"fine", "note", "trouble"}
        worst = any(row["verdict"] == "trouble" for row in found.values())
        assert result.returncode == (1 if worst else 0)
        return found
    run.rows = rows
    return run


def test_this_machine(doctor):
    """The tests run guests here, so there is no trouble; and the table says what JSON says."""
    rows = doctor.rows()
    assert rows["programs"]["verdict"] == "fine" and rows["code"]["verdict"] == "fine"
    assert rows["images"]["verdict"] == "note"
    assert "lodge image build default" in rows["images"]["advice"]
    table = doctor().stdout
    for name, row in rows.items():
        line = next(line for line in table.splitlines() if line.split()[1:2] == [name])
        assert line.startswith(row["verdict"])
        assert name in ("kvm", "room") or row["what"] in line  # these may change meanwhile


def test_what_is_missing_is_named(doctor, tmp_path):
    (tmp_path / "bin").mkdir()
    rows = doctor.rows(PATH=str(tmp_path / "bin"))
    assert rows["network"]["verdict"] == "note" and "passt" in rows["network"]["advice"]
    assert "--kernel" in rows["images"]["advice"]  # no apt in that PATH, either


def test_a_lonely_program_is_trouble(doctor, bin_folder, tmp_path):
    alone = shutil.copy(f"{bin_folder}/lodge", tmp_path / "lodge")
    rows = doctor.rows(program=alone)
    assert rows["programs"]["verdict"] == "trouble" and "lodge-vmm" in rows["programs"]["what"]


def test_a_folder_of_everybodys_is_trouble(doctor, tmp_path):
    folder = tmp_path / "lodge"
    folder.mkdir()
    folder.chmod(0o777)
    rows = doctor.rows(XDG_RUNTIME_DIR=str(tmp_path))
    assert rows["names"]["verdict"] == "trouble" and "others may write" in rows["names"]["what"]
    folder.chmod(0o700)
    assert doctor.rows(XDG_RUNTIME_DIR=str(tmp_path))["names"]["verdict"] == "fine"


def test_mistakes(bin_folder):
    result = subprocess.run([f"{bin_folder}/lodge", "doctor", "--format", "xml"],
                            capture_output=True, text=True)
    assert result.returncode == 2 and "table or json" in result.stderr
