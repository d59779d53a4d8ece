"""What steppers share; each stepper's own tests go back and sum over real process groups."""

import torch

from train.elastic.pieces import Piece
from train.member import Member


class Weights(Member):
    def __init__(self):
        super().__init__(torch.device("cpu"), alone=True)
        self.values = torch.zeros(3)
        self.told = []

    def pieces(self):
        return [Piece("w", 0, 3, self.values, 0, {})]

    def publish(self):
        self.told.append(self.values.tolist())

    def _forget(self, pieces):
        self.told.append(len(pieces))


def test_a_lone_worker_is_its_own_sum():
    member = Weights()
    member.barrier()
    assert (member.rank, member.world_size, member.total(2.5)) == (0, 1, 2.5)


def test_going_back_is_to_what_was_remembered_last_and_as_often_as_one_likes():
    member = Weights()
    for remembered in (1.0, 2.0):
        member.values.fill_(remembered)
        member.remember()
    for _ in range(2):
        member.values.fill_(9.0)
        member.go_back()
        assert member.values.tolist() == [2.0] * 3
    assert member.told == [1, [2.0] * 3] * 2, "cleared, loaded, then taken over"
