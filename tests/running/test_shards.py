"""Shares of the work, and how the processes that have them wait for each other."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from itgan_data.running.checkpoint import Checkpointer, State
from itgan_data.running.shards import Shard, Team
from itgan_data.running.stopping import OutOfTimeError, TimeLimit


class TestShard:
    def test_every_piece_belongs_to_one(self) -> None:
        for pieces in (0, 1, 5, 16, 33):
            dealt = [piece for number in range(1, 17) for piece in Shard(number, 16).deal(pieces)]
            assert sorted(dealt) == list(range(pieces))

    def test_is_written_number_of_count(self) -> None:
        assert Shard.parse("3/16") == Shard(3, 16)
        assert str(Shard(3, 16)) == "3/16"

    @pytest.mark.parametrize("text", ["", "3", "3/", "/16", "-1/2", "1/2/3", " 1/2", "1/2\n", "a/b", "1.0/2", "¹/2"])
    def test_what_is_written_otherwise_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="is written NUMBER/COUNT, such as 3/16 for the third of sixteen, got"):
            Shard.parse(text)

    @pytest.mark.parametrize("text", ["0/16", "17/16", "1/0", "0/0"])
    def test_they_are_counted_from_one(self, text: str) -> None:
        with pytest.raises(ValueError, match=f"are counted from 1/.*, got {text}"):
            Shard.parse(text)

    def test_a_process_without_a_group_has_all(self) -> None:
        assert Shard.of_this_process() == Shard(1, 1)


class TestTeam:
    @staticmethod
    def gather(folder: Path, shard: Shard | None, made: list[int], minutes: float | None = None) -> list[int]:
        """Ten pieces, each the square of its number."""

        def make(number: int) -> State:
            made.append(number)
            pieces[number].save({"square": torch.tensor(number**2)}, 1)
            return {"square": torch.tensor(number**2)}

        time_limit = TimeLimit(minutes, folder)
        pieces = [Checkpointer(folder / str(number), {}, minutes=1, time_limit=time_limit) for number in range(10)]
        return [int(piece["square"]) for piece in Team(shard, time_limit).gather(pieces, 1, make)]

    @pytest.mark.parametrize("count", [1, 2, 3, 11])
    def test_all_get_all_pieces_and_each_is_made_once(self, tmp_path: Path, count: int) -> None:
        made: list[int] = []
        with ThreadPoolExecutor(count) as threads:
            shards = [Shard(number, count) for number in range(1, count + 1)]
            gathered = list(threads.map(lambda shard: self.gather(tmp_path, shard, made), shards))
        assert gathered == [[number**2 for number in range(10)]] * count
        assert Counter(made) == Counter(range(10))

    def test_what_is_not_far_enough_is_waited_for(self, tmp_path: Path) -> None:
        Checkpointer(tmp_path / "1", {}).save({}, 0)
        with pytest.raises(OutOfTimeError):
            self.gather(tmp_path, Shard(1, 10), [], minutes=1e-9)

    def test_who_waits_for_nobody_reads_what_is_there(self, tmp_path: Path) -> None:
        self.gather(tmp_path, Shard(1, 1), [])
        made: list[int] = []
        assert self.gather(tmp_path, None, made) == [number**2 for number in range(10)]
        assert made == []
        (tmp_path / "7" / "checkpoint.json").unlink()
        with pytest.raises(
            ValueError,
            match=r"1 of 10 pieces .* finished: 7 \(step 0\); run first Condenser\.prepare",
        ):
            self.gather(tmp_path, None, made)
