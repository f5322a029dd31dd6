from __future__ import annotations

import pytest
import torch

from lightning_taylor.utilities.calls import Inputs


def test_a_tensor_a_tuple_and_a_dict_become_arguments() -> None:
    x, y = torch.zeros(2, 3), torch.zeros(2)
    assert Inputs.of(x).args == (x,)
    assert Inputs.of((x, y)).args == (x, y)
    assert Inputs.of({"a": x}).kwargs == {"a": x}
    assert Inputs.of(Inputs((x,))).args == (x,)


def test_another_batch_size_repeats_the_examples_and_leaves_the_rest() -> None:
    x, scale = torch.arange(2.0)[:, None], torch.tensor(3.0)
    more = Inputs.of((x, [x.int()], scale, "same")).with_batch(3)
    assert torch.equal(more.args[0], torch.tensor([[0.0], [1.0], [0.0]]))
    assert more.args[1][0].shape == (3, 1)
    assert more.args[2:] == (scale, "same")
    assert more.with_batch(1).shapes == ((1, 1), (1, 1), ())


def test_a_model_that_writes_into_its_inputs_does_not_change_them() -> None:
    inputs = Inputs.of(torch.ones(2, 2))
    assert inputs.run(lambda x: x.zero_()).sum() == 0
    assert inputs.args[0].sum() == 4


@pytest.mark.parametrize(("wrong", "message"), [("a word", "no tensor"), (torch.zeros(0, 3), "without an example")])
def test_inputs_without_a_tensor_or_an_example_are_refused(wrong: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Inputs.of(wrong)
