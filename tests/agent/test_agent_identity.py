"""One agent, one identity: the lock, and what survives a restart: counter, term, credentials, holdings, inventory."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gpushare.core.kinds import Enforcement
from gpushare_agent.core import Holding
from gpushare_agent.gpus.port import GpuInfo
from gpushare_agent.holdings import HoldingBook
from gpushare_agent.identity import Credentials, IdentityError, StateDirectory
from gpushare_agent.inventory import CardBook, Inventory, fence_lines, host_size, inventory_of, managed
from gpushare_agent.sharing import port as sharing

CREDENTIALS = Credentials("127.0.0.1:7480", "", "n1", "gps_secret", "00")

OPEN = "import sys; from pathlib import Path; from gpushare_agent.identity import *\n"


def in_another_process(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", OPEN + code, str(path)], capture_output=True, text=True, timeout=30, check=False
    )


class TestStateDirectory:
    def test_a_second_agent_on_the_same_directory_is_told_who_has_it(self, tmp_path: Path) -> None:
        held = StateDirectory.open(tmp_path / "state")
        code = """
try:
    StateDirectory.open(Path(sys.argv[1]))
except IdentityError as err:
    print(err)
"""
        found = in_another_process(code, held.path)
        assert found.stdout == f"another agent (pid {os.getpid()}) runs on the state directory {held.path}\n"

    def test_the_lock_goes_with_the_process(self, tmp_path: Path) -> None:
        code = "import os; StateDirectory.open(Path(sys.argv[1])).begin(); os.kill(os.getpid(), 9)"
        assert in_another_process(code, tmp_path).returncode == -9
        assert StateDirectory.open(tmp_path).begin().start_counter == 2

    def test_the_instance_stays_and_the_counter_grows(self, tmp_path: Path) -> None:
        state = StateDirectory.open(tmp_path)
        starts = [state.begin() for _ in range(3)]
        assert [start.start_counter for start in starts] == [1, 2, 3]
        assert len({start.instance_id for start in starts}) == 1
        assert starts[0].instance_id != StateDirectory.open(tmp_path / "other").begin().instance_id

    def test_the_highest_term_survives(self, tmp_path: Path) -> None:
        state = StateDirectory.open(tmp_path)
        assert state.highest_term() == 0
        state.write_term(7)
        assert state.highest_term() == 7

    def test_credentials_are_the_owners_alone_and_their_token_is_not_shown(self, tmp_path: Path) -> None:
        state = StateDirectory.open(tmp_path)
        assert state.credentials() is None
        state.write_credentials(CREDENTIALS)
        assert state.credentials() == CREDENTIALS
        assert stat.S_IMODE((tmp_path / "credentials").stat().st_mode) == 0o600
        assert "gps_secret" not in repr(CREDENTIALS)

    @pytest.mark.parametrize("name", ["identity", "term", "credentials"])
    def test_a_damaged_file_stops_the_start_and_is_named(self, tmp_path: Path, name: str) -> None:
        state = StateDirectory.open(tmp_path)
        (tmp_path / name).write_bytes(b"\x00garbage")
        with pytest.raises(IdentityError, match=name):
            {"identity": state.begin, "term": state.highest_term, "credentials": state.credentials}[name]()

    def test_an_empty_identity_is_not_taken_for_a_new_agent(self, tmp_path: Path) -> None:
        state = StateDirectory.open(tmp_path)
        (tmp_path / "identity").write_bytes(b"")
        with pytest.raises(IdentityError, match="identity"):
            state.begin()

    def test_a_place_that_cannot_be_a_directory_is_a_clear_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(IdentityError, match="cannot be used"):
            StateDirectory.open(tmp_path / "file" / "state")


class TestHoldings:
    def test_what_is_held_survives_and_what_is_dropped_does_not(self, tmp_path: Path) -> None:
        book = HoldingBook(tmp_path)
        one = Holding(attempt_id="v.1.0.1", tier="timeslice", gpu_uuids=("GPU-a",), gpu_milli=250, gids=(1, 2))
        book.write(one)
        book.write(Holding(attempt_id="v.2.0.1"))
        book.drop("v.2.0.1")
        book.drop("v.3.0.1")
        assert HoldingBook(tmp_path).load() == {"v.1.0.1": one}

    def test_a_file_that_was_dropped_is_written_again(self, tmp_path: Path) -> None:
        book = HoldingBook(tmp_path)
        for number in range(5):
            book.write(Holding(attempt_id=f"v.{number}.0.1", gpu_uuids=("GPU-with-a-longer-name",) * (5 - number)))
            if number:
                book.drop(f"v.{number}.0.1")
        assert sorted(path.name for path in (tmp_path / "held").iterdir()) == [".spare-3", "v.0.0.1.json"]
        again = HoldingBook(tmp_path)
        again.write(Holding(attempt_id="v.9.0.1"))
        assert set(again.load()) == {"v.0.0.1", "v.9.0.1"}
        assert len(list((tmp_path / "held").iterdir())) == 2

    def test_damaged_and_foreign_files_count_as_absent(self, tmp_path: Path) -> None:
        book = HoldingBook(tmp_path)
        book.write(Holding(attempt_id="v.1.0.1"))
        (tmp_path / "held" / "v.2.0.1.json").write_bytes(b"{")
        (tmp_path / "held" / "v.3.0.1.json").write_bytes((tmp_path / "held" / "v.1.0.1.json").read_bytes())
        assert list(book.load()) == ["v.1.0.1"]


def card(uuid: str = "GPU-a", **fields: object) -> GpuInfo:
    settings: dict[str, object] = {
        "uuid": uuid, "index": 0, "minor": 0, "model": "H200", "total_mib": 143_771, "reserved_mib": 600,
    }  # fmt: skip
    return GpuInfo(**{**settings, **fields})  # type: ignore[arg-type]


def registered(info: GpuInfo, usable_mib: int) -> Inventory:
    return Inventory((info,), inventory_of([info], {info.uuid: usable_mib}, sharing.TierReport(cards=())), "580")


class TestInventory:
    def test_a_new_card_is_measured(self, tmp_path: Path) -> None:
        assert CardBook(tmp_path).usable_mib(card(), 512, empty=True) == 143_771 - 600 - 512

    def test_usable_memory_changes_only_while_the_card_is_empty(self, tmp_path: Path) -> None:
        CardBook(tmp_path).write(registered(card(), 140_000))
        again = CardBook(tmp_path)
        assert again.usable_mib(card(), 512, empty=False) == 140_000
        assert again.usable_mib(card(), 512, empty=True) == 142_659

    def test_what_was_registered_last_is_there_after_a_restart(self, tmp_path: Path) -> None:
        inventory = registered(card(), 140_000)
        CardBook(tmp_path).write(inventory)
        assert CardBook(tmp_path).last == inventory

    def test_a_damaged_book_is_measured_anew(self, tmp_path: Path) -> None:
        (tmp_path / "cards").write_bytes(b"{")
        assert CardBook(tmp_path).last == Inventory()

    def test_only_managed_cards_are_ours(self) -> None:
        cards = [card("GPU-a"), card("GPU-b")]
        assert managed(cards, None) == cards
        assert managed(cards, {"GPU-b"}) == cards[1:]

    def test_each_card_says_what_it_can_fence_and_why_not_the_rest(self) -> None:
        offers = (
            sharing.TierOffer(tier=sharing.Tier.EXCLUSIVE, enforcement=sharing.Enforcement.HARD, available=True),
            sharing.TierOffer(
                tier=sharing.Tier.MPS_V2, enforcement=sharing.Enforcement.SERVER, available=False, detail="no MPS here"
            ),
        )
        report = sharing.TierReport(cards=(sharing.CardTiers(uuid="GPU-a", offers=offers),))
        found = inventory_of([card()], {"GPU-a": 140_000}, report)
        assert [(t.tier, t.enforcement, t.absent_because) for t in found[0].tiers] == [
            ("exclusive", Enforcement.HARD, ""),
            ("mps-v2", Enforcement.SERVER, "no MPS here"),
        ]
        (line,) = fence_lines(found)
        assert "fences exclusive (hard); not mps-v2: no MPS here" in line
        assert "140000 of 143771 MiB" in line

    def test_the_host_offers_what_this_process_may_use(self) -> None:
        size = host_size()
        assert size.cpu_milli == len(os.sched_getaffinity(0)) * 1000
        assert size.memory_mib > 100
