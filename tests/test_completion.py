"""What the shells offer on Tab, and the manual pages: both from the table of commands."""
import os
import re
import shutil
import subprocess

import pytest


@pytest.fixture
def lodge(bin_folder, tmp_path):
    """Where two guests seem to run and one image is there."""
    runtime = tmp_path / "run/lodge"
    runtime.mkdir(parents=True, mode=0o700)
    for name in ("web.sock", "web.json", "db.sock", "db.lock"):
        (runtime / name).touch()
    env = dict(os.environ, XDG_RUNTIME_DIR=str(tmp_path / "run"), LC_ALL="C.UTF-8",
               XDG_DATA_HOME=str(tmp_path / "data"), PATH=f"{bin_folder}:{os.environ['PATH']}")

    def run(*arguments, program="lodge"):
        return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60,
                              env=env, cwd=tmp_path)
    return run


def words(lodge, *line):
    result = lodge("completion", "--words", "--", *line)
    assert result.returncode == 0 and result.stderr == ""
    return [row.split("\t")[0] for row in result.stdout.splitlines()]


def commands(lodge, *path):
    """All that there are below `path`, itself first."""
    text = lodge(*path, "--help").stdout
    found = [path]
    if "\nCommands:\n" in text:
        part = text.split("\nCommands:\n")[1].split("\n\n")[0]
        for name in re.findall(r"^  ([a-z]+) ", part, re.MULTILINE):
            found += commands(lodge, *path, name)
    return found


@pytest.mark.parametrize("line, there, missing", [
    ([""], {"run", "image", "completion", "version"}, {"build", "web", "/"}),
    (["re"], {"resume", "restore"}, {"run"}),
    (["image", ""], {"build", "ls"}, {"run"}),
    (["image", "build", ""], {"default", "debian"}, {"web"}),
    (["pause", ""], {"web", "db"}, {"/", "run"}),
    (["pause", "w"], {"web"}, {"db"}),
    (["pause", "web", ""], set(), {"web", "db", "/"}),
    (["snapshot", "web", ""], {"/"}, {"web"}),
    (["snapshot", "--base", ""], {"/"}, {"web"}),
    (["snapshot", "--base", "old", ""], {"web", "db"}, {"/"}),
    (["snapshot", "-s", ""], {"web", "db"}, {"/"}),
    (["link", "web", "0", ""], {"up", "down"}, {"web"}),
    (["help", "s"], {"snapshot"}, {"run"}),
    (["run", "--mem"], {"--memory"}, {"--name"}),
    (["run", "--"], {"--memory", "--help", "--disk"}, {"run"}),
    (["run", "--", ""], set(), {"run", "web", "/", "--memory"}),
    (["run", "-m", ""], set(), {"/", "web"}),
    (["nonsense", ""], set(), {"run", "/"}),
    (["disk", "convert", "a.img", ""], {"/"}, {"web"}),
])
def test_words(lodge, line, there, missing):
    found = set(words(lodge, *line))
    assert there <= found and not missing & found, found
    assert there or not found


def test_every_command_offers_its_options(lodge):
    """As --help prints them."""
    for path in commands(lodge):
        printed = re.findall(r"^ {2,6}(?:-\w, )?(--[\w-]+)", lodge(*path, "--help").stdout,
                             re.MULTILINE)
        assert "--help" in printed
        assert sorted(words(lodge, *path, "--")) == sorted(set(printed)), path


@pytest.mark.parametrize("line, expected", [
    ("lodge im", ["image"]),
    ("lodge pause ", ["db", "web"]),
    ("lodge image build deb", ["debian"]),
    ("lodge disk info afi", ["afile with a space"]),
    ("lodge run -- l", []),
])
def test_bash(lodge, tmp_path, line, expected):
    (tmp_path / "afile with a space").touch()
    script = ("source <(lodge completion bash); COMP_LINE=$1; COMP_POINT=${#1}; _lodge; "
              "printf '%s\\n' \"${COMPREPLY[@]}\"")
    result = lodge("--norc", "-c", script, "bash", line, program="bash")
    assert result.returncode == 0, result.stderr
    assert sorted(filter(None, result.stdout.splitlines())) == expected


def test_bash_behind_a_colon(lodge):
    """What is put in there stands for what is behind the colon only."""
    script = ("source <(lodge completion bash); lodge() { printf 'debian:bookworm\\timage\\n'; }; "
              "COMP_LINE='lodge run debian:b' COMP_POINT=18; _lodge; echo \"${COMPREPLY[@]}\"")
    result = lodge("--norc", "-c", script, program="bash")
    assert result.stdout == "bookworm\n", result.stderr


@pytest.mark.parametrize("shell, check", [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")])
def test_the_scripts_are_scripts(lodge, tmp_path, shell, check):
    result = lodge("completion", shell)
    assert result.returncode == 0 and "completion --words --" in result.stdout
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "script"
    script.write_text(result.stdout, encoding="utf-8")
    checked = lodge(check, str(script), program=shell)
    assert checked.returncode == 0, checked.stderr


def test_mistakes(lodge):
    for arguments in (["completion"], ["completion", "csh"]):
        result = lodge(*arguments)
        assert result.returncode == 2 and result.stdout == ""
        assert "bash, zsh or fish" in result.stderr


def test_manual_pages(lodge, bin_folder):
    """One for each command, with all its options; and each is installed."""
    built = {name for name in os.listdir(f"{bin_folder}/../prog/lodge") if name.endswith(".1")}
    wanted = set()
    for path in commands(lodge):
        wanted.add("-".join(("lodge", *path)) + ".1")
        page = lodge("help", "--man", *path)
        assert page.returncode == 0 and page.stdout.startswith(".TH LODGE")
        for option in words(lodge, *path, "--"):
            assert option.replace("-", "\\-") in page.stdout, (path, option)
        assert not re.search(r"^\.(?!TH|SH|TP|PP|nf|fi)", page.stdout, re.MULTILINE)
        if shutil.which("groff"):
            checked = subprocess.run(["groff", "-ww", "-man", "-z"], input=page.stdout, text=True,
                                     capture_output=True)
            assert checked.returncode == 0 and checked.stderr == "", (path, checked.stderr)
    assert built == wanted
