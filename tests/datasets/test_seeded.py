"""Streams of random numbers: one for each key, the same wherever it is asked for."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmflowers.datasets.flowers import FlowersDataset
from mmflowers.datasets.seeded import EPOCHS, PHOTOS, STEPS, seed_generators, seed_sequence

numbers = st.one_of(st.integers(0, 3), st.sampled_from([2**32, 2**32 + 1, 2**64]))
keys = st.lists(numbers, max_size=8).map(tuple)


def drawn(*key: int) -> tuple[float, float, float]:
    seed_generators(*key)
    return random.random(), float(np.random.rand()), float(torch.rand((), dtype=torch.float64))


def stream(*key: int) -> bytes:
    return seed_sequence(*key).generate_state(4).tobytes()


@pytest.mark.parametrize(
    ("one", "other"),
    [((7, 1, 0), (7, 1, 0, 0)), ((0, 1), (2**32,)), ((2**32, 5), (0, 1, 5)), ((), (0,)), ((1, 2), (12,))],
)
def test_keys_that_numpy_reads_as_the_same_words_are_different_streams(one, other):
    assert stream(*one) != stream(*other)
    assert not {*drawn(*one)} & {*drawn(*other)}


@settings(max_examples=300)
@given(one=keys, other=keys)
def test_two_keys_share_a_stream_only_if_they_are_equal(one, other):
    assert (stream(*one) == stream(*other)) == (one == other)


def test_a_key_of_numpys_integers_is_the_key_of_pythons():
    assert stream(*np.array([7, 1, 0])) == stream(7, 1, 0)


def test_python_and_numpy_draw_different_numbers_of_one_key():
    ours, theirs, _ = drawn(7, PHOTOS, 0)  # both have a Mersenne twister: equal seeds would make equal numbers
    assert ours != theirs


def test_seeds_of_any_size_are_taken():
    assert drawn(2**64 + 7, STEPS, 0, 0) != drawn(7, STEPS, 0, 0)


def test_the_augmentation_of_whole_batches_has_a_stream_of_its_own(dataset):
    pipeline = [dict(type="LoadImageFromFile"), dict(type="RandomResizedCrop", scale=48), dict(type="PackInputs")]
    photos = FlowersDataset(data_root=str(dataset), ann_file="train.txt", pipeline=pipeline, cache=True)
    epoch, repeat, seed = 1, 0, 7
    batch = photos.batch([(epoch, repeat, 0)], seed)

    def draw(*key: int) -> list[np.ndarray]:
        rng = np.random.default_rng(seed_sequence(*key))
        return [values[:1] for values in photos.augmentation.draw(rng, photos._shapes)]

    assert all(map(np.array_equal, batch["augment"].drawn, draw(seed, EPOCHS, epoch, repeat)))
    assert not any(map(np.array_equal, batch["augment"].drawn, draw(seed, STEPS, 0, 0)))
