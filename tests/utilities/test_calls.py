from __future__ import annotations

import pytest
import torch

from lightning_taylor.utilities.calls import ForwardCall, Inputs, copied_like, with_examples


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


def shapes(*args: object, batch: int) -> list[tuple[int, ...]]:
    """Return those of a call that was made one of so many examples."""
    return list(Inputs(with_examples([ForwardCall("", args)], batch)[0].args).shapes)


def test_a_call_of_more_examples_begins_again_with_the_first() -> None:
    x = torch.arange(2.0)[:, None]
    (more,) = with_examples([ForwardCall("", (x,))], 3)
    assert torch.equal(more.args[0], torch.tensor([[0.0], [1.0], [0.0]]))


@pytest.mark.parametrize("batch", [1, 3, 8, 9])
def test_what_has_a_leading_one_beside_the_batch_is_no_example(batch: int) -> None:
    assert shapes(torch.zeros(8, 5), torch.zeros(1, 5), batch=batch) == [(batch, 5), (1, 5)]
    grey = [torch.zeros(1, 8, 6)] * 8
    assert shapes(grey, torch.zeros(8, 5), batch=batch) == [*[(1, 8, 6)] * batch, (batch, 5)]


@pytest.mark.parametrize("batch", [1, 3, 9])
def test_a_batch_in_another_dimension_is_left_as_it_is(batch: int) -> None:
    x, state = torch.zeros(8, 5, 6), torch.zeros(1, 8, 32)
    assert shapes(x, state, batch=batch) == shapes(x, (state, state), batch=batch)[:2] == [(8, 5, 6), (1, 8, 32)]


def test_a_copied_call_has_storage_of_its_own_and_the_precision_of_the_parameter() -> None:
    x, index = torch.ones(4, 2, requires_grad=True), torch.arange(4)
    (copied,) = copied_like([ForwardCall("", (x[:2] * 1, index))], torch.ones(1, dtype=torch.float64))
    assert (copied.args[0].dtype, copied.args[1].dtype) == (torch.float64, torch.int64)
    assert not copied.args[0].requires_grad
    copied.args[1].zero_()
    assert index[-1] == 3
