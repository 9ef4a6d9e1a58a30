"""Proves that replayed calls give the scores of the network that was recorded, whatever picture comes."""

import threading

import pytest
import torch
from test_fold import lived_in, searchnets
from torch import Tensor, nn

from searchseg import replay
from searchseg.replay import Recorder, Replayed


class Counted(nn.Module):
    """Calls of many kinds: in place, several results, an offset made of numbers, one made of a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.weight = torch.randn(3)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        offset = torch.full((3,), 1 / x.shape[2]) * self.weight.neg()
        total = x.permute(0, 2, 3, 1) + offset
        for part in total.chunk(2, dim=-1):
            part.mul_(2).add_(part.mean())
        best, place = total.max(dim=-1)
        return torch.cat((best, place.float()), dim=-1).relu_()


def test_the_third_picture_of_a_shape_is_replayed_bit_for_bit() -> None:
    network = Counted()
    ready, alone = Replayed(network), Counted()
    alone.weight = network.weight
    for calls in (1, 2, 2, 2):
        x = torch.randn(2, 3, 6, 5)
        assert torch.equal(ready(x), alone(x)) and network.calls == calls
    x = torch.randn(1, 3, 6, 5)
    assert torch.equal(ready(x), alone(x)) and network.calls == 3


def test_results_of_earlier_pictures_stay() -> None:
    ready, pictures = Replayed(Counted()), torch.randn(4, 1, 3, 4, 4)
    kept = [ready(x) for x in pictures]
    assert all(torch.equal(known, ready(x)) for known, x in zip(kept, pictures, strict=True))


def test_what_does_not_come_from_the_picture_is_a_constant() -> None:
    network, x = Counted(), torch.randn(1, 3, 4, 4)
    with Recorder(x) as recorder:
        scores = network(x)
    code = recorder.program(scores).__code__.co_names
    assert "permute" in " ".join(code) and not {"full", "neg"} & set(" ".join(code).replace("_", " ").split())


def test_a_call_that_gives_nothing_is_refused() -> None:
    x = torch.randn(1, 3, 4, 4)
    with pytest.raises(TypeError, match="cannot be replayed"), Recorder(x):
        x[0] = 1


def test_programs_of_many_shapes_are_not_kept() -> None:
    ready = Replayed(network := Counted())
    for side in range(2, 10):
        for _ in range(2):
            ready(torch.randn(1, 3, side, side))
    assert len(ready._programs) == replay.MOST_PROGRAMS
    before = network.calls
    ready(torch.randn(1, 3, 9, 9))
    assert network.calls == before
    for side in range(2, 2 + 2 * replay.SEEN):
        ready(torch.randn(1, 3, side, 1))
    assert len(ready._seen) <= replay.SEEN


def test_threads_may_record_and_replay_side_by_side() -> None:
    model = lived_in(searchnets()["random"])
    ready, pictures, wrong = Replayed(model), torch.randn(4, 1, 3, 24, 24), []
    with torch.inference_mode():
        wanted = [model(x) for x in pictures]

    @torch.inference_mode()
    def run(number: int) -> None:
        for _ in range(20):
            if not torch.equal(ready(pictures[number]), wanted[number]):
                wrong.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(ready._programs) == 1


def test_recording_keeps_no_activations() -> None:
    x = torch.randn(1, 3, 4, 4)
    with Recorder(x) as recorder:
        for _ in range(5):
            x.neg().relu()
        assert len(recorder._nodes) == 1  # x itself
