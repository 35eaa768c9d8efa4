"""What made a run is recorded, uncommitted and new files included, and no secret with it."""

import subprocess

from ablations import provenance


def git(root, *arguments):
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
        cwd=root, check=True, capture_output=True,
    )  # fmt: skip


def test_changed_and_new_files_make_a_revision_dirty_and_are_kept(tmp_path, monkeypatch):
    git(tmp_path, "init")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "a.py").write_text("x = 1\n")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-m", "one")
    clean, diff = provenance.code(tmp_path)
    assert len(clean["revision"]) == 40
    assert not clean["dirty"]
    assert diff == ""
    monkeypatch.setenv("SOME_API_KEY", "hunter2hunter2")
    (tmp_path / "models" / "a.py").write_text("x = 'hunter2hunter2'\n")
    (tmp_path / "models" / "new.py").write_text("y = 2\n")
    dirty, diff = provenance.code(tmp_path)
    assert dirty["dirty"]
    assert dirty["revision"] == clean["revision"]
    assert "y = 2" in diff
    assert "hunter2" not in diff
    assert "<SOME_API_KEY>" in diff


def test_without_git_the_revision_is_unknown_and_nothing_fails(tmp_path):
    assert provenance.code(tmp_path / "nowhere")[0]["revision"] is None
