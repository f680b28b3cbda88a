"""Files are whole or absent and folders are made once, whatever ends the process."""

import errno
import multiprocessing
import os
import signal
import time

import pytest

from medvlp.store import atomic_write, get_or_make, remove_leftovers

fork = multiprocessing.get_context("fork")


def _ended(target, *args) -> int | None:
    process = fork.Process(target=target, args=args)
    process.start()
    process.join()
    return process.exitcode


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "new folder" / "a.txt"
    with atomic_write(path, "w") as file:
        file.write("Größe 1\n")
        assert not path.exists()
    assert path.read_bytes() == "Größe 1\n".encode()
    with pytest.raises(TypeError), atomic_write(path) as file:
        file.writelines([b"half", None])
    assert path.read_bytes() == "Größe 1\n".encode()
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("private", [False, True])
def test_a_private_file_is_its_owners_alone(tmp_path, private):
    path = tmp_path / "a"
    path.write_bytes(b"older")
    path.chmod(0o644)
    old = os.umask(0o022)
    try:
        with atomic_write(path, private=private) as file:
            file.write(b"newer")
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == (0o600 if private else 0o644)


def _raised(path, content) -> OSError:
    with pytest.raises(OSError, match=r".") as caught, atomic_write(path) as file:
        file.write(content())
    return caught.value


def _full() -> bytes:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_an_error_names_the_file(tmp_path):
    folder, path, other = tmp_path / "folder", tmp_path / "a", tmp_path / "other"
    folder.mkdir()
    assert str(_raised(folder, bytes)).endswith(f"Is a directory: '{folder}'")
    assert _raised(path, _full).filename == str(path)
    assert _raised(path, other.read_bytes).filename == str(other)
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def _write_until(path, at):
    count = 0

    def watched(function):
        def counting(*args, **kwargs):
            nonlocal count
            for after in (False, True):
                count += 1
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = None if after else function(*args, **kwargs)
            return result

        return counting

    os.fsync, os.replace = watched(os.fsync), watched(os.replace)
    with atomic_write(path) as file:
        file.write(b"newer")


def test_a_killed_writer_leaves_the_older_file(tmp_path):
    path = tmp_path / "a"
    contents = set()
    for at in range(1, 20):
        path.write_bytes(b"older")
        code = _ended(_write_until, path, at)
        contents.add(path.read_bytes())
        if code == 0:
            break
        remove_leftovers(tmp_path)
        assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
    assert code == 0
    assert at > 3
    assert contents == {b"older", b"newer"}


def _fill(path, calls, hold=0.0, end=False):
    with get_or_make(path, "facts.json") as temporary:
        if temporary is not None:
            (calls / str(os.getpid())).touch()
            time.sleep(hold)
            (temporary / "data").write_text("data")
            if end:
                os.kill(os.getpid(), signal.SIGKILL)
            (temporary / "facts.json").write_text("{}")
    assert (path / "data").read_text() == "data"


def test_one_process_makes_and_the_others_wait(tmp_path):
    (tmp_path / "calls").mkdir()
    path = tmp_path / "cache" / "abc"
    processes = [fork.Process(target=_fill, args=(path, tmp_path / "calls", 0.3)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(list((tmp_path / "calls").iterdir())) == 1
    assert [entry.name for entry in path.parent.iterdir()] == ["abc"]


def test_a_folder_is_absent_until_it_is_complete(tmp_path):
    path = tmp_path / "cache" / "abc"
    assert _ended(_fill, path, tmp_path, 0.0, True) == -signal.SIGKILL
    assert not path.exists()
    assert list(path.parent.glob("abc.*"))
    with pytest.raises(KeyError), get_or_make(path, "facts.json"):
        raise KeyError
    assert not list(path.parent.glob("abc*"))
    path.mkdir()
    (path / "data").write_text("of an interrupted copy")
    _fill(path, tmp_path)
    assert [entry.name for entry in path.parent.iterdir()] == ["abc"]
    with get_or_make(path, "facts.json") as temporary:
        assert temporary is None


def test_whoever_waits_is_called(tmp_path, monkeypatch):
    monkeypatch.setattr("medvlp.store._POLL", 0.05)
    process = fork.Process(target=_fill, args=(tmp_path / "abc", tmp_path, 1.0))
    process.start()
    while not (tmp_path / str(process.pid)).exists():
        time.sleep(0.01)
    calls = []
    with get_or_make(tmp_path / "abc", "facts.json", lambda: calls.append(1)) as temporary:
        assert temporary is None
    process.join()
    assert calls


def test_without_locks_the_first_to_end_wins(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("medvlp.store.FileLock.acquire", refused)
    path = tmp_path / "abc"
    with get_or_make(path, "facts.json") as slower:
        _fill(path, tmp_path)
        (slower / "facts.json").write_text("other")
    assert (path / "facts.json").read_text() == "{}"
    assert not list(tmp_path.glob("*.part"))
