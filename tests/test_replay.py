"""Proves that replayed calls give the scores of the network that was recorded, whatever picture comes."""

import threading
from concurrent.futures import ThreadPoolExecutor

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


def written(x: Tensor) -> Tensor:
    x[0] = 1
    return x


CONSTANT = torch.zeros(1, 3, 4, 4)
UNFIT = {
    "assigns": written,
    "reads a value": lambda x: x / x.abs().max().item(),
    "decides by a value": lambda x: x if x.sum() > 0 else -x,
    "goes through numpy": lambda x: torch.from_numpy(x.numpy() + 1),
    "writes into a constant": lambda x: CONSTANT.mul_(0).add_(x),
    "does not look": lambda x: CONSTANT,
}


@pytest.mark.parametrize("function", UNFIT.values(), ids=UNFIT)
def test_what_depends_on_more_than_the_shape_is_not_replayed(function) -> None:
    class Unfit(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    ready = Replayed(Unfit())
    for _ in range(4):
        x = torch.randn(1, 3, 4, 4)
        assert torch.equal(ready(x.clone()), function(x.clone()))
    assert not ready._programs and not ready._waiting


def test_a_program_that_gives_other_scores_is_not_kept(monkeypatch) -> None:
    monkeypatch.setattr(Recorder, "program", lambda *_: lambda x: x + 1)
    ready, alone = Replayed(network := Counted()), Counted()
    alone.weight = network.weight
    for _ in range(3):
        x = torch.randn(1, 3, 4, 4)
        assert torch.equal(ready(x), alone(x))
    assert not ready._programs and network.calls == 3


def test_only_the_first_shapes_are_recorded() -> None:
    ready = Replayed(network := Counted())
    sides = range(2, 4 + replay.MOST_PROGRAMS)
    for _ in range(3):
        for side in sides:
            ready(torch.randn(1, 3, side, side))
    assert len(ready._programs) == replay.MOST_PROGRAMS == len(ready._shapes)
    assert network.calls == 3 * len(sides) - replay.MOST_PROGRAMS


def test_threads_may_record_and_replay_side_by_side() -> None:
    model = lived_in(searchnets()["random"])
    entered, pictures = [], [torch.randn(1 + n % 2, 3, 24, 24) for n in range(4)]
    with torch.inference_mode():
        wanted = [model(x) for x in pictures]
    ready = Replayed(model)
    model.register_forward_pre_hook(lambda *_: entered.append(threading.get_ident()))

    @torch.inference_mode()
    def run(number: int) -> bool:
        return all(torch.equal(ready(pictures[number]), wanted[number]) for _ in range(20))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(4)))
    assert len(ready._programs) == 2 and 4 <= len(entered) < 40


def test_one_thread_records_while_others_go_on() -> None:
    network, x, other = Counted(), torch.randn(1, 3, 4, 4), torch.randn(1, 3, 5, 5)
    ready, begun, rest = Replayed(network), threading.Event(), threading.Event()
    ready(x), ready(other)
    record = ready._record

    def slowly(x: Tensor) -> Tensor:
        begun.set()
        assert rest.wait(20)
        return record(x)

    ready._record = slowly
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ready, x)
        assert begun.wait(20)
        quick = ready(x)
        ready(other)  # which waits for a recording, too
        rest.set()
        assert torch.equal(slow.result(20), quick)
    assert network.calls == 5 and set(ready._programs) == {x.shape}


def test_recording_keeps_no_activations() -> None:
    x = torch.randn(1, 3, 4, 4)
    with Recorder(x) as recorder:
        for _ in range(5):
            x.neg().relu()
        assert len(recorder._nodes) == 1  # x itself
