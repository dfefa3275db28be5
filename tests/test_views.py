"""A view is a pure function of (view seed, view, image)."""

import numpy as np
import pytest
import torch

from kdstudy.trainables import views as views_module
from kdstudy.trainables.settings import ViewSettings
from kdstudy.trainables.views import Views, draw_view, resize

EVERYTHING = ViewSettings(shift=2, flip=True, scale=0.2, mixup=0.5)


def make(images, settings, *, seed=3, size=8, count=5):
    return Views(torch.from_numpy(images.images), torch.from_numpy(images.labels), settings, view_seed=seed,
                 count=count, size=size)


@pytest.mark.parametrize("ahead", [0, 2**26])
@pytest.mark.parametrize("settings", [ViewSettings(shift=1), EVERYTHING, ViewSettings(flip=True, mixup=0.3)])
def test_a_view_does_not_depend_on_batches_or_their_order(images, settings, ahead, monkeypatch):
    monkeypatch.setattr(views_module, "RENDER_AHEAD_BYTES", ahead)
    whole = make(images, settings).batch(2, torch.arange(48)).images
    views = make(images, settings)
    order = torch.from_numpy(np.random.default_rng(1).permutation(48))
    for indices in order.split(7):
        views.batch(0, indices)  # another view in between changes nothing
        assert torch.equal(views.batch(2, indices).images, whole[indices])


def test_rendering_ahead_changes_nothing(images, monkeypatch):
    rows = torch.tensor([5, 1, 40])
    ahead = make(images, EVERYTHING).batch(1, rows).images
    monkeypatch.setattr(views_module, "RENDER_AHEAD_BYTES", 0)
    assert torch.equal(make(images, EVERYTHING).batch(1, rows).images, ahead)


def test_seeds_and_views_differ_and_views_repeat_after_the_last(images):
    rows = torch.arange(48)
    first = make(images, EVERYTHING).batch(0, rows).images
    assert not torch.equal(first, make(images, EVERYTHING, seed=4).batch(0, rows).images)
    assert not torch.equal(first, make(images, EVERYTHING).batch(1, rows).images)
    assert torch.equal(first, make(images, EVERYTHING).batch(5, rows).images)


def test_an_images_own_draw_does_not_depend_on_how_many_others_there_are():
    few, many = draw_view(EVERYTHING, 3, 1, 10), draw_view(EVERYTHING, 3, 1, 1000)
    for name in ("shift_x", "shift_y", "flip", "zoom", "partner_weight"):
        assert torch.equal(getattr(few, name), getattr(many, name)[:10])


def test_shift_moves_pixels_exactly_and_fills_with_zero(images):
    settings = ViewSettings(shift=2)
    batch, drawn = make(images, settings).batch(0, torch.arange(48)), draw_view(settings, 3, 0, 48)
    padded = np.pad(images.images, ((0, 0), (0, 0), (2, 2), (2, 2)))
    for index in range(48):
        y, x = 2 + int(drawn.shift_y[index]), 2 + int(drawn.shift_x[index])
        expected = padded[index, :, y : y + 8, x : x + 8] / np.float32(255)
        np.testing.assert_array_equal(batch.images[index].numpy(), expected.astype(np.float32))
    assert {int(v) for v in drawn.shift_x} == {-2, -1, 0, 1, 2}


def test_flip_mirrors_about_half_of_the_images(images):
    settings = ViewSettings(flip=True)
    batch, drawn = make(images, settings).batch(0, torch.arange(48)), draw_view(settings, 3, 0, 48)
    plain = torch.from_numpy(images.images).float() / 255
    assert torch.equal(batch.images, torch.where(drawn.flip[:, None, None, None], plain.flip(3), plain))
    assert 10 < int(drawn.flip.sum()) < 38


def test_mixup_mixes_images_and_says_with_whom(images):
    settings = ViewSettings(mixup=0.5)
    batch, drawn = make(images, settings).batch(0, torch.arange(48)), draw_view(settings, 3, 0, 48)
    plain = torch.from_numpy(images.images).float() / 255
    weight = drawn.partner_weight[:, None, None, None]
    torch.testing.assert_close(batch.images, (1 - weight) * plain + weight * plain[drawn.partner])
    assert torch.equal(batch.partner_labels, batch.labels[drawn.partner])
    assert float(batch.partner_weight.min()) >= 0 and float(batch.partner_weight.max()) <= 0.5


def test_the_same_view_at_two_sizes_shows_the_same_thing(images):
    small, large = (make(images, EVERYTHING, size=size).batch(0, torch.arange(48)).images for size in (8, 32))
    correlation = np.corrcoef(resize(large, 8).flatten().numpy(), small.flatten().numpy())[0, 1]
    assert large.shape == (48, 1, 32, 32) and correlation > 0.95


def test_no_zoom_means_no_interpolation(images):
    plain = make(images, ViewSettings()).batch(0, torch.arange(48)).images
    assert torch.equal(plain, torch.from_numpy(images.images).float() / 255)
