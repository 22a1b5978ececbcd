import signal

import pytest
from conftest import stops_by

from itgan_data.running.stopping import signals_held


def test_a_signal_is_held_until_the_end_of_the_block(stop_signal: signal.Signals) -> None:
    with stops_by(stop_signal), signals_held() as signal_that_came:
        assert signal_that_came() == 0
        signal.raise_signal(stop_signal)
        assert signal_that_came() == stop_signal


def test_a_second_one_comes_through_at_once(stop_signal: signal.Signals) -> None:
    with stops_by(stop_signal), signals_held():
        signal.raise_signal(stop_signal)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_what_is_handled_otherwise_is_left_alone(stop_signal: signal.Signals) -> None:
    before = signal.signal(stop_signal, lambda number, frame: came.append(number))
    came: list[int] = []
    with signals_held() as signal_that_came:
        signal.raise_signal(stop_signal)
        assert signal_that_came() == 0
    signal.signal(stop_signal, before)
    assert came == [stop_signal]
