"""A folder appears whole or not at all, whatever kills the process that writes it, and whoever else writes there."""

import os
import re
import shutil
import signal
import socket
import stat
import sys
import time
from itertools import count

import pytest

import forked
from internvlx_hf.checkpoints.atomic_folder import atomic_folder
from small_folder import PERSONS, content, names, whole, write

pytestmark = pytest.mark.any_transformers

# What changes the disk, and the lock: the process is killed before each of these calls, and before each file that it opens
# to write, but once only for calls that differ in nothing but a number or the file in one folder.
STEPS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "fcntl.flock")


def signalled_at_each_step(number: signal.Signals, act, prepare):
    """Run `act` again and again, each time with the signal sent before its next step; yields what step that was."""
    for step in count():
        prepare()
        read, tell = os.pipe()

        def run(step=step, tell=tell):
            seen = set()

            def watch(event, arguments):
                writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
                if not (event in STEPS or writes):
                    return
                place = re.sub(r"\b[0-9a-f]{8}\b|\d+", "", str(arguments[0]))
                call = (event, os.path.dirname(place) if event in ("open", "os.remove", "os.chmod") else place)
                if call in seen:
                    return
                seen.add(call)
                if len(seen) == step + 1:
                    os.write(tell, f"{step}: {event} {arguments}".encode())
                    os.kill(os.getpid(), number)

            sys.addaudithook(watch)
            act()

        status = forked.run(run)
        os.close(tell)
        with os.fdopen(read) as told:
            place = told.read()
        if not place:
            assert status == 0
            assert step > 6
            return
        yield place, status


SIGNALS = pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name
)


@pytest.mark.slow
@SIGNALS
def test_first_write_killed_at_any_step_can_be_repeated(number, tmp_path):
    parent = tmp_path / "new"
    out = parent / "out"
    for place, _ in signalled_at_each_step(
        number, lambda: write(out, "new"), lambda: shutil.rmtree(parent, ignore_errors=True)
    ):
        if out.exists():
            assert content(out) == whole("new"), place
            with pytest.raises(FileExistsError, match="exists already"):
                write(out, "again")
            write(out, "again", overwrite=True)
        else:
            write(out, "again")
        assert (content(out), names(parent)) == (whole("again"), ["out"]), place


@pytest.mark.slow
@SIGNALS
def test_overwrite_killed_at_any_step_loses_neither_checkpoint_nor_card(number, tmp_path):
    parent = tmp_path / "parent"
    out = parent / "out"

    def prepare():
        shutil.rmtree(parent, ignore_errors=True)
        write(out, "old")
        (out / "README.md").write_text(PERSONS)

    is_there = set()
    for place, _ in signalled_at_each_step(number, lambda: write(out, "new", overwrite=True), prepare):
        is_there.add(out.exists())
        if number == signal.SIGINT and content(out) == whole("old", PERSONS):
            kinds = {name.partition("run-")[0] for name in names(parent)}
            assert kinds <= {".out.internvlx.lock", ".out.internvlx.", "out"}, place
        with pytest.raises(FileExistsError, match="exists already"):
            write(out, "not asked for")
        assert content(out) in (whole("old", PERSONS), whole("new", PERSONS)), place
        write(out, "newest", overwrite=True)
        assert (content(out), names(parent)) == (whole("newest", PERSONS), ["out"]), place
    # the matrix has met the moment at which no folder is in its place, unless the signal lets the process put it back
    assert is_there == ({True} if number == signal.SIGINT else {True, False})


@pytest.mark.slow
def test_run_that_puts_a_folder_back_may_be_killed_too(tmp_path):
    parent, seed = tmp_path / "parent", tmp_path / "seed"
    out = parent / "out"

    def prepare():
        shutil.rmtree(parent, ignore_errors=True)
        write(out, "old")
        (out / "README.md").write_text(PERSONS)

    for _ in signalled_at_each_step(signal.SIGKILL, lambda: write(out, "new", overwrite=True), prepare):
        if not out.exists():
            shutil.copytree(parent, seed)
            break
    assert any(name.startswith(".out.replaced-") for name in names(seed))

    def restart():
        shutil.rmtree(parent)
        shutil.copytree(seed, parent)

    for place, _ in signalled_at_each_step(signal.SIGKILL, lambda: write(out, "newer", overwrite=True), restart):
        with pytest.raises(FileExistsError, match="exists already"):
            write(out, "not asked for")
        assert content(out) in (whole("old", PERSONS), whole("newer", PERSONS)), place
        write(out, "newest", overwrite=True)
        assert (content(out), names(parent)) == (whole("newest", PERSONS), ["out"]), place


def test_folder_that_was_half_deleted_is_never_put_back(tmp_path):
    out = tmp_path / "out"
    write(out, "old")

    def kill_while_it_is_deleted():
        sys.addaudithook(
            lambda event, arguments: (
                os.kill(os.getpid(), signal.SIGKILL)
                if event == "os.remove" and arguments[0] == "config.json"
                else None
            )
        )
        write(out, "new", overwrite=True)

    assert forked.run(kill_while_it_is_deleted) == -signal.SIGKILL
    assert content(out) == whole("new")
    out.rename(tmp_path / "elsewhere")
    write(out, "newest")
    assert content(out) == whole("newest")
    assert names(tmp_path) == ["elsewhere", "out"]


def test_folder_that_came_after_a_kill_is_not_taken_for_the_new_one(tmp_path, caplog):
    out = tmp_path / "out"
    write(out, "old")

    def kill_between_the_renames():
        sys.addaudithook(
            lambda event, arguments: (
                os.kill(os.getpid(), signal.SIGKILL)
                if event == "os.rename" and str(arguments[1]) == str(out)
                else None
            )
        )
        write(out, "new", overwrite=True)

    assert forked.run(kill_between_the_renames) == -signal.SIGKILL
    assert not out.exists()
    write(tmp_path / "other", "other")
    (tmp_path / "other").rename(out)
    write(out, "newest", overwrite=True)
    assert content(out) == whole("newest")
    (kept,) = tmp_path.glob("out.replaced-*")
    assert content(kept) == whole("old")
    assert names(tmp_path) == ["out", kept.name]


@pytest.mark.parametrize("overwrite", [False, True])
def test_of_processes_that_write_one_folder_at_once_one_does_and_the_others_fail_at_once(overwrite, tmp_path):
    out, others_ended = tmp_path / "out", tmp_path / "ended"
    if overwrite:
        write(out, "old")

    def compete(number: int) -> None:
        try:
            with atomic_folder(out, overwrite=overwrite) as partial:
                (partial / "config.json").write_text(str(number))
                for _ in range(60_000):  # or the others wait for this one
                    if others_ended.exists():
                        break
                    time.sleep(0.001)
        except BlockingIOError as error:
            os._exit(10 if "Another process is writing" in str(error) else 11)

    numbers = {forked.start(lambda number=number: compete(number)): number for number in range(6)}
    for _ in range(5):
        process, status = os.wait()
        del numbers[process]
        assert os.waitstatus_to_exitcode(status) == 10
    others_ended.touch()
    ((process, number),) = numbers.items()
    assert forked.wait(process) == 0
    assert content(out) == {"config.json": str(number)}
    assert names(tmp_path) == ["ended", "out"]


def test_lock_of_a_file_that_the_run_before_removed_is_taken_again(tmp_path):
    """The run before ends after the file was opened and before it was locked."""
    removed = []

    def remove(event, arguments):
        if event == "fcntl.flock" and len(removed) < 3:
            removed.append(event)
            (tmp_path / ".out.internvlx.lock").unlink()

    def act():
        sys.addaudithook(remove)
        with atomic_folder(tmp_path / "out"):
            assert len(removed) == 3
            with pytest.raises(BlockingIOError), atomic_folder(tmp_path / "out"):
                pass

    assert forked.run(act) == 0
    assert names(tmp_path) == ["out"]


def test_message_names_the_process_that_writes(tmp_path):
    who = (
        rf"is writing .*out \(process {os.getpid()} on {re.escape(socket.gethostname())}, since \d{{4}}-\d\d-\d\d \d\d"
    )
    with atomic_folder(tmp_path / "out"), pytest.raises(BlockingIOError, match=who), atomic_folder(tmp_path / "out"):
        pass


def test_lock_holds_for_other_paths_to_the_same_folder(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    with (
        atomic_folder("real/out"),
        pytest.raises(BlockingIOError, match="Another process is writing"),
        atomic_folder("link/out"),
    ):
        pass


def test_file_that_appears_in_out_is_kept_and_so_is_the_finished_work(tmp_path):
    out = tmp_path / "out"

    def write_while_another_does():
        with atomic_folder(out) as partial:
            (partial / "config.json").write_text("new")
            out.mkdir()
            (out / "thesis.txt").write_text("years of work")

    with pytest.raises(
        FileExistsError, match=r"exists already.*The finished folder is kept as .*out\.finished-"
    ) as error:
        write_while_another_does()
    assert content(out) == {"thesis.txt": "years of work"}
    (kept,) = tmp_path.glob("out.finished-*")
    assert str(kept) in str(error.value)
    assert content(kept) == {"config.json": "new"}
    assert names(tmp_path) == ["out", kept.name]


@pytest.mark.parametrize("moment", ["while it is written", "at the last moment"])
def test_file_that_appears_in_a_folder_to_overwrite_stays_there(moment, tmp_path):
    out = tmp_path / "out"
    write(out, "old")

    def appear():
        (out / "thesis.txt").write_text("years of work")

    def run():
        if moment == "at the last moment":
            sys.addaudithook(
                lambda event, arguments: appear() if event == "os.rename" and str(arguments[0]) == str(out) else None
            )
        try:
            with atomic_folder(out, overwrite=True) as partial:
                (partial / "config.json").write_text("new")
                if moment == "while it is written":
                    appear()
        except FileExistsError as error:
            (tmp_path / "error").write_text(str(error))

    assert forked.run(run) == 0
    assert "did not write, and is not overwritten: thesis.txt." in (tmp_path / "error").read_text()
    assert content(out) == whole("old") | {"thesis.txt": "years of work"}
    (kept,) = tmp_path.glob("out.finished-*")
    assert content(kept) == {"config.json": "new"}
    assert names(tmp_path) == ["error", "out", kept.name]


def test_folder_that_somebody_puts_in_place_of_ours_is_noticed(tmp_path, monkeypatch):
    out, rename = tmp_path / "out", os.rename
    write(out, "old")
    write(tmp_path / "other", "other")

    def rename_and_replace(source, target):
        rename(source, target)
        if ".writing-" in str(source):
            rename(out, tmp_path / "stolen")
            rename(tmp_path / "other", out)

    monkeypatch.setattr(os, "rename", rename_and_replace)
    with pytest.raises(OSError, match="out is not the folder that this run wrote"):
        write(out, "new", overwrite=True)
    (kept,) = tmp_path.glob("out.replaced-*")
    assert content(out) == whole("other")
    assert content(kept) == whole("old")


def test_hidden_folders_that_no_run_noted_are_left_alone(tmp_path):
    theirs = tmp_path / ".out.writing-0123abcd"
    theirs.mkdir()
    write(tmp_path / "out", "new")
    assert names(tmp_path) == [theirs.name, "out"]


def test_lock_file_that_is_a_link_is_not_followed(tmp_path):
    lock = tmp_path / ".out.internvlx.lock"
    lock.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="cannot be written"):
        write(tmp_path / "out", "new")
    assert names(tmp_path) == [lock.name]


def test_empty_folder_may_be_there(tmp_path):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", "new")
    assert content(tmp_path / "out") == whole("new")


def test_link_stays_a_link_and_what_it_leads_to_is_replaced(tmp_path):
    write(tmp_path / "real" / "out", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real" / "out")
    write(tmp_path / "link", "new", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "real" / "out") == whole("new")
    (tmp_path / "dangling").symlink_to(tmp_path / "real" / "later")
    write(tmp_path / "dangling", "new")
    assert content(tmp_path / "real" / "later") == whole("new")
    assert names(tmp_path / "real") == ["later", "out"]


def test_relative_path_and_new_parents(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("a/b/out", "new")
    assert content(tmp_path / "a" / "b" / "out") == whole("new")


def test_failure_leaves_no_parents_behind(tmp_path):
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "a" / "b" / "out"):
        raise RuntimeError
    assert names(tmp_path) == []


@pytest.mark.parametrize("parent", ["file", "/proc"])
def test_place_that_cannot_be_written_is_named(parent, tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / parent / "out"
    with pytest.raises(OSError, match=f"{out} cannot be written: "), atomic_folder(out):
        pass


def test_private_folder_stays_private_and_others_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write(tmp_path / "out", "old")
        assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750
        (tmp_path / "out").chmod(0o700)
        write(tmp_path / "out", "new", overwrite=True)
        assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700
    finally:
        os.umask(before)


def test_disk_that_is_mounted_at_out_is_named_before_the_work():
    with pytest.raises(FileExistsError, match="a mount point"), atomic_folder("/proc", overwrite=True):
        raise AssertionError("the work began")
