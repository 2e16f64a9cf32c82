"""Apps and runs of one card find each other, whoever started them; those of two cards do not."""

from __future__ import annotations

import ctypes
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from alpaca_rlhf.app.training import training_elsewhere
from alpaca_rlhf.core import gpu_lock
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.locks import Lock
from alpaca_rlhf.core.runs import TRAINING_LOG

FIRST, SECOND = "11" * 16, "22" * 16


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine whose notices lie below `tmp_path`; returns a function that changes the user."""
    monkeypatch.delenv("ALPACA_RLHF_CARD")
    monkeypatch.setattr(gpu_lock, "_MACHINE_FOLDER", tmp_path / "machine")
    monkeypatch.setattr(gpu_lock, "POLL_S", 0.01)

    def act_as(user: str, *cards: str) -> None:
        monkeypatch.setenv("HOME", str(tmp_path / user))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / user / "cache"))
        monkeypatch.setattr(gpu_lock, "visible_cards", lambda: cards)

    return act_as


def app_that_holds(run: Path) -> gpu_lock.Notice:
    notice = gpu_lock.Notice("app", run, gpu_lock.folder())
    notice.publish(holds=True)
    return notice


def take(run: Path) -> None:
    with gpu_lock.Loan(run, lambda line: None, patience_s=0) as loan:
        loan.take()


def test_the_runs_of_one_user_ask_the_app_of_another_for_their_common_card(machine, tmp_path):
    machine("ann", FIRST)
    notice = app_that_holds(tmp_path / "chat")
    machine("bob", SECOND, FIRST)
    with pytest.raises(UserError, match="chat"):
        take(tmp_path / "training")
    notice.withdraw()


def test_two_cards_of_one_user_do_not_block_each_other(machine, tmp_path):
    machine("ann", FIRST)
    notice = app_that_holds(tmp_path / "chat")
    training = gpu_lock.Notice("ask", tmp_path / "training", gpu_lock.folder())
    assert training_elsewhere(tmp_path / "new") == "training"
    machine("ann", SECOND)
    take(tmp_path / "another")
    assert training_elsewhere(tmp_path / "new") is None
    notice.withdraw()
    training.withdraw()


@pytest.mark.parametrize(("here", "there"), [((), ()), ((FIRST,), ()), ((), (FIRST,))])
def test_without_a_card_that_is_known_all_of_the_machine_meet(machine, tmp_path, here, there):
    machine("ann", *there)
    training = gpu_lock.Notice("ask", tmp_path / "training", gpu_lock.folder())
    machine("bob", *here)
    assert training_elsewhere(tmp_path / "new") == "training"
    training.withdraw()


def test_a_run_started_from_a_page_counts_until_it_asks_for_another_card(machine, tmp_path):
    (tmp_path / "beside").mkdir()
    machine("ann", SECOND)
    with Lock(tmp_path / "beside" / TRAINING_LOG):
        machine("ann", FIRST)
        assert training_elsewhere(tmp_path / "new") == "beside"
        machine("ann", SECOND)
        notice = gpu_lock.Notice("ask", tmp_path / "beside", gpu_lock.folder())
        machine("ann", FIRST)
        assert training_elsewhere(tmp_path / "new") is None
        notice.withdraw()


def test_other_users_can_read_the_notices_and_add_their_own(machine, tmp_path):
    machine("ann", FIRST)
    umask = os.umask(0o077)
    try:
        notice = app_that_holds(tmp_path / "chat")
    finally:
        os.umask(umask)
    where = gpu_lock.folder()
    assert stat.S_IMODE(where.stat().st_mode) == 0o1777
    modes = {path.suffix: stat.S_IMODE(path.stat().st_mode) for path in where.iterdir()}
    assert modes == {".json": 0o644, ".lock": 0o644}
    notice.withdraw()


def test_a_notice_of_an_earlier_version_concerns_every_card(machine, tmp_path):
    machine("ann", FIRST)
    where = gpu_lock.folder()
    where.mkdir(parents=True)
    (where / "ask-1.json").write_text('{"pid": 7, "run": "/runs/old", "holds": false}')
    with Lock(where / "ask-1.lock"):
        assert training_elsewhere(tmp_path / "new") == "old"


@pytest.mark.parametrize("stands_there", ["link", "file"])
def test_what_stands_in_the_folders_place_is_one_line_and_the_run_goes_on(
    machine, tmp_path, stands_there
):
    machine("ann", FIRST)
    where, target = gpu_lock.folder(), tmp_path / "target"
    where.parent.mkdir()
    target.mkdir()
    where.symlink_to(target) if stands_there == "link" else where.write_text("")
    lines: list[str] = []
    with gpu_lock.Loan(tmp_path / "training", lines.append, patience_s=0) as loan:
        loan.take()
    assert list(target.iterdir()) == []
    (line,) = lines
    assert str(where) in line and "is not a folder" in line and "ALPACA_RLHF_CARD" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_only_its_owner_may_write_to_is_one_line(machine, tmp_path):
    machine("ann", FIRST)
    gpu_lock.folder().mkdir(parents=True, mode=0o555)
    with pytest.raises(UserError, match=r"cannot be written .*ALPACA_RLHF_CARD"):
        app_that_holds(tmp_path / "chat")


def test_pipes_links_and_odd_texts_among_the_notices_are_passed_over(machine, tmp_path):
    machine("ann", FIRST)
    where = gpu_lock.folder()
    where.mkdir(parents=True)
    infinite = '{"pid": Infinity, "run": "", "holds": true}'
    odd = ("[]", "{", '{"pid": "x"}', '{"pid": 1, "run": 2}', infinite, "[" * 60_000)
    for number, text in enumerate(odd):
        (where / f"ask-{number}.json").write_text(text)
    os.mkfifo(where / "ask-pipe.json")
    os.mkfifo(where / "ask-8.lock")
    (where / "ask-8.json").write_text('{"pid": 8, "run": "/runs/x", "holds": true}')
    (tmp_path / "outside.json").write_text('{"pid": 9, "run": "/runs/x", "holds": true}')
    (where / "ask-9.json").symlink_to(tmp_path / "outside.json")
    locks = [Lock(where / f"ask-{number}.lock") for number in (*range(len(odd)), 9)]
    assert gpu_lock.live_notes("ask", where) == []
    for lock in locks:
        lock.close()


def test_an_app_of_another_user_that_keeps_the_card_stops_no_run(machine, tmp_path, monkeypatch):
    """Its user alone could end it: the run goes on with the memory that is free."""
    machine("ann", FIRST)
    notice = app_that_holds(tmp_path / "chat")
    with pytest.raises(UserError, match="end it and run the same command again"):
        take(tmp_path / "mine")
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    lines: list[str] = []
    with gpu_lock.Loan(tmp_path / "training", lines.append, patience_s=0) as loan:
        loan.take()
    assert "of another user keeps the card" in lines[-1] and str(os.getpid()) in lines[-1]
    notice.withdraw()


def test_no_mode_is_changed_by_name(machine, tmp_path, monkeypatch):
    """Under a name the folder's owner could put a link to another file of this user's."""
    machine("ann", FIRST)
    gpu_lock.folder().mkdir(parents=True)
    changed: list[Path] = []
    monkeypatch.setattr(Path, "chmod", lambda path, mode: changed.append(path))
    monkeypatch.setattr(os, "chmod", lambda path, mode, **options: changed.append(path))
    app_that_holds(tmp_path / "chat").withdraw()
    assert changed == [] and list(gpu_lock.folder().iterdir()) == []


def test_a_named_card_is_the_one_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(gpu_lock, "_driver_uuids", lambda: (FIRST, SECOND))
    assert gpu_lock.visible_cards() == (FIRST,)
    monkeypatch.setenv("ALPACA_RLHF_DEVICE", "cuda:1")
    assert gpu_lock.visible_cards() == (SECOND,)
    monkeypatch.setenv("ALPACA_RLHF_DEVICE", "cpu")
    assert gpu_lock.visible_cards() == (), "on the processor it meets every app, on whatever card"


class Driver:
    """NVIDIA's driver with two cards in the order of `CUDA_VISIBLE_DEVICES`."""

    def __init__(self, *uuids: str, status: int = 0) -> None:
        self.uuids, self.status = uuids, status

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDeviceGetCount(self, count) -> int:
        count._obj.value = len(self.uuids)
        return 0

    def cuDeviceGet(self, device, number: int) -> int:
        device._obj.value = 40 + number
        return 0

    def cuDeviceGetUuid_v2(self, raw, device) -> int:
        ctypes.memmove(raw._obj, bytes.fromhex(self.uuids[device.value - 40]), 16)
        return 0


def test_a_card_is_known_by_its_uuid_without_torch(monkeypatch):
    monkeypatch.setattr(gpu_lock, "_cuda_driver", lambda: Driver(SECOND, FIRST))
    assert gpu_lock.visible_cards() == (SECOND,)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert gpu_lock.visible_cards() == (SECOND, FIRST), "one for each process"


def test_where_the_driver_is_another_torch_names_the_card_if_it_is_loaded(monkeypatch):
    card = SimpleNamespace(uuid="GPU-2a")
    cuda = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 1, get_device_properties=lambda _: card
    )
    monkeypatch.setattr(gpu_lock, "_cuda_driver", lambda: Driver(status=100))
    monkeypatch.setitem(gpu_lock.sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert gpu_lock.visible_cards() == ("gpu2a",)
    monkeypatch.delitem(gpu_lock.sys.modules, "torch")
    assert gpu_lock.visible_cards() == ()
