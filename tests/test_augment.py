"""The augmentations: each image's own draw, torchvision's own operations, the same at every batch and size."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from synthetic import here, write_finished
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from kdstudy.config.load import load_study
from kdstudy.config.models import check_views
from kdstudy.errors import UserError
from kdstudy.stages.logits_file import view_settings
from kdstudy.stages.students import view_inputs
from kdstudy.store.storage import Storage
from kdstudy.study import Study
from kdstudy.trainables import views as views_module
from kdstudy.trainables.augment import auto, boxes, crop, cutmix
from kdstudy.trainables.augment.draws import noise, uniform
from kdstudy.trainables.settings import AUGMENT, JITTER, ViewSettings
from kdstudy.trainables.views import Views, draw_view, resize

EACH = {
    "crop": ViewSettings(crop_scale=(0.2, 1.0)),
    "crop of what was moved": ViewSettings(crop_scale=(0.5, 1.0), shift=2, flip=True, scale=0.2),
    "randaugment": ViewSettings(auto_augment="randaugment", randaug_magnitude=20),
    "trivialaugment": ViewSettings(auto_augment="trivialaugment"),
    "jitter": ViewSettings(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2),
    "erase": ViewSettings(erase=0.7),
    "erase, grey": ViewSettings(erase=0.7, erase_fill="constant"),
    "cutmix": ViewSettings(cutmix=1.0),
    "mixup or cutmix": ViewSettings(cutmix=0.8, mixup=0.5),
    **{name: ViewSettings(augment=name, shift=1) for name in AUGMENT},
}
MANY = 20_000
RNG = np.random.default_rng(7)
LABELS = torch.arange(30) % 4


def smooth(count=30, channels=3, size=16):
    """Random images without sharp edges, (N, C, size, size) uint8, so that they can be compared at two sizes."""
    coarse = torch.from_numpy(RNG.random((count, channels, 4, 4))).float()
    return (resize(coarse, size) * 255).round().byte()


PIXELS = smooth()


def make(settings, *, pixels=PIXELS, seed=3, size=24, count=5):
    return Views(pixels, LABELS[: len(pixels)], settings, view_seed=seed, count=count, size=size)


def show(settings, **how):
    pixels = how.get("pixels", PIXELS)
    return make(settings, **how).batch(1, torch.arange(len(pixels)))


# -- a pure function of (view seed, view, image) ----------------------------------------------------------------------


@pytest.mark.parametrize("settings", EACH.values(), ids=EACH)
@pytest.mark.parametrize("size", [8, 24])
def test_a_view_does_not_depend_on_batches_their_order_or_rendering_ahead(settings, size, monkeypatch):
    ahead = show(settings, size=size)
    assert ahead.images.min() >= 0 and ahead.images.max() <= 1
    monkeypatch.setattr(views_module, "RENDER_AHEAD_BYTES", 0)
    views = make(settings, size=size)
    for indices in torch.from_numpy(np.random.default_rng(1).permutation(30)).split(7):
        views.batch(0, indices)
        batch = views.batch(1, indices)
        assert torch.equal(batch.images, ahead.images[indices])
        if settings.mixes:
            assert torch.equal(batch.partner_weight, ahead.partner_weight[indices])


@pytest.mark.parametrize("settings", EACH.values(), ids=EACH)
def test_an_images_own_draw_does_not_depend_on_how_many_others_there_are(settings):
    few, many = draw_view(settings, 3, 1, 10), draw_view(settings, 3, 1, 1000)
    for name, value in vars(few).items():
        assert name == "partner" or value is None or torch.equal(value, getattr(many, name)[:10])


@pytest.mark.parametrize("settings", EACH.values(), ids=EACH)
def test_seeds_and_views_differ_and_the_global_generators_are_left_alone(settings):
    before = torch.get_rng_state(), str(np.random.get_state())
    first, rows = show(settings).images, torch.arange(30)
    assert not torch.equal(first, show(settings, seed=4).images)
    assert not torch.equal(first, make(settings).batch(2, rows).images)
    assert torch.equal(first, make(settings).batch(6, rows).images)
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == str(np.random.get_state())


def test_no_augmentation_changes_the_draws_of_another():
    """Shift, flip, zoom and mixup come from the six columns that they always came from."""
    old = ViewSettings(shift=2, flip=True, scale=0.2, mixup=0.5)
    plain = draw_view(old, 3, 1, 500)
    columns = np.random.Generator(np.random.Philox(key=[3, 1])).random((500, 6))
    np.testing.assert_array_equal(plain.shift_x, (columns[:, 0] * 5).astype(int) - 2)
    np.testing.assert_array_equal(plain.partner_weight, (0.5 * columns[:, 5]).astype(np.float32))
    everything = draw_view(ViewSettings(augment="deit", shift=2, scale=0.2, brightness=0.1), 3, 1, 500)
    for name in ("shift_x", "shift_y", "flip", "zoom", "partner"):
        assert torch.equal(getattr(plain, name), getattr(everything, name))
    takes_mixup = everything.partner_weight > 0
    assert torch.equal(everything.partner_weight[takes_mixup], plain.partner_weight[takes_mixup])
    alone = draw_view(EACH["erase"], 3, 1, 500).erased
    assert torch.equal(draw_view(ViewSettings(erase=0.7, cutmix=1.0, hue=0.1), 3, 1, 500).erased, alone)


# -- the same view at two sizes ---------------------------------------------------------------------------------------


SEEN_ALIKE = [name for name in EACH if name not in ("erase", "deit")]


@pytest.mark.parametrize("name", SEEN_ALIKE)
def test_teacher_and_student_see_the_same_view_each_at_its_own_size(name):
    small, large = (show(EACH[name], size=size) for size in (16, 64))
    correlation = np.corrcoef(resize(large.images, 16).flatten(), small.images.flatten())[0, 1]
    assert correlation > (0.9 if "augment" in name else 0.95)
    if EACH[name].mixes:
        assert (small.partner_weight - large.partner_weight).abs().max() <= 2 / 16


def test_noise_fills_the_same_box_at_both_sizes_and_is_the_same_at_one():
    drawn = draw_view(EACH["erase"], 3, 1, 30).erased
    for size in (16, 64):
        batch, plain = show(EACH["erase"], size=size), show(ViewSettings(), size=size)
        inside = boxes.inside(drawn, size).expand(-1, 3, -1, -1)
        assert torch.equal(batch.images[~inside], plain.images[~inside])
        assert (batch.images[inside] != plain.images[inside]).float().mean() > 0.99
        assert torch.equal(batch.images, show(EACH["erase"], size=size).images)


# -- what is drawn ----------------------------------------------------------------------------------------------------


def sides(drawn):
    left, top, right, bottom = drawn.double().T
    return right - left, bottom - top


def test_crops_have_the_areas_and_ratios_of_the_closed_form():
    """An area below 1 is accepted if its log ratio, uniform up to ln(4/3) either way, keeps both sides within the
    image: with probability min(1, -ln area / ln(4/3)). So the accepted areas have this density, up to a constant."""
    drawn = draw_view(ViewSettings(crop_scale=(0.08, 1.0)), 0, 0, MANY).crop
    width, height = sides(drawn)
    assert drawn.min() >= 0 and drawn.max() <= 1 + 1e-6
    area = np.linspace(0.08, 1, 100_001)
    density = np.minimum(1, -np.log(area) / np.log(4 / 3))
    expected, spread = (density * area).sum() / density.sum(), float((width * height).std())
    assert (width * height).mean() == pytest.approx(expected, abs=4 * spread / MANY**0.5)
    assert 0.0799 < (width * height).min() < 0.09
    small = (width * height) < 0.6  # of these every ratio fits
    logs = (width / height).log()[small] / np.log(4 / 3)
    assert logs.min() > -1.0001 and logs.max() < 1.0001 and abs(logs.mean()) < 0.03
    assert logs.std() == pytest.approx(3**-0.5, rel=0.03)
    left = drawn[:, 0].double()[width < 0.9] / (1 - width[width < 0.9])
    assert left.mean() == pytest.approx(0.5, abs=0.02) and left.std() == pytest.approx(12**-0.5, rel=0.03)


def test_a_crop_that_never_fits_is_the_largest_in_the_middle():
    drawn = crop.draw(uniform("crop", 0, 0, 50, boxes.COLUMNS), (0.9, 1.0), (3.0, 4.0))
    np.testing.assert_allclose(drawn, np.tile([0, 1 / 3, 1, 2 / 3], (50, 1)))
    tall = crop.draw(uniform("crop", 0, 0, 50, boxes.COLUMNS), (0.9, 1.0), (0.1, 0.5))
    np.testing.assert_allclose(tall, np.tile([0.25, 0, 0.75, 1], (50, 1)))


def test_erasing_hits_the_stated_share_with_timms_areas():
    drawn = draw_view(ViewSettings(erase=0.25), 0, 0, MANY).erased
    hit = drawn.any(1)
    assert hit.double().mean() == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / MANY) ** 0.5)
    width, height = sides(drawn[hit])
    area = width * height
    assert area.min() > 0.0199 and area.max() < 1 / 3 + 1e-4
    assert area.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.005)
    assert (width / height).log().std() == pytest.approx(np.log(1 / 0.3) / 3**0.5, rel=0.05)


def test_an_erased_box_holds_uniform_noise_of_its_own_and_grey_if_so_set():
    pixels = torch.zeros(30, 3, 64, 64, dtype=torch.uint8)
    images = show(ViewSettings(erase=1.0), pixels=pixels, size=64).images
    values = images[images > 0]
    assert values.mean() == pytest.approx(0.5, abs=0.01) and values.std() == pytest.approx(12**-0.5, rel=0.02)
    assert len(values.unique()) > 0.95 * len(values)  # no two images, channels or pixels share their noise
    grey = show(ViewSettings(erase=1.0, erase_fill="constant"), pixels=pixels, size=64).images
    assert torch.equal(grey, (images.amax(1, keepdim=True) > 0).float().expand_as(grey) / 2)
    assert not np.array_equal(noise(1, 0, 5, (3, 4, 4)), noise(1, 0, 6, (3, 4, 4)))


@pytest.mark.parametrize(("settings", "levels"), [
    (ViewSettings(auto_augment="randaugment"), [9]), (ViewSettings(auto_augment="trivialaugment"), range(31))])
def test_operations_signs_and_magnitudes_are_equally_likely(settings, levels):
    drawn = draw_view(settings, 0, 0, MANY)
    slots = 2 if settings.auto_augment == "randaugment" else 1
    assert drawn.ops.shape == (MANY, slots)
    counts = np.bincount(drawn.ops.flatten(), minlength=14)
    expected = MANY * slots / 14
    assert len(counts) == 14 and abs(counts - expected).max() < 4 * expected**0.5
    rotations = drawn.magnitudes[drawn.ops == auto.OPS.index("Rotate")]
    largest = {"randaugment": 30, "trivialaugment": 135}[settings.auto_augment]
    steps = (rotations.abs() * 30 / largest).round().unique().tolist()
    assert steps == list(levels)
    signs = rotations[rotations != 0].sign()
    assert abs(signs.mean()) < 4 / len(signs) ** 0.5


def test_jitter_draws_every_order_and_factors_up_to_its_strength():
    drawn = draw_view(ViewSettings(brightness=0.4, contrast=0.2, hue=0.1), 0, 0, MANY)
    assert len({tuple(order) for order in drawn.jitter_order.tolist()}) == 24
    low, high = drawn.jitter_amounts.amin(0), drawn.jitter_amounts.amax(0)
    np.testing.assert_allclose(low, [0.6, 0.8, 1, -0.1], atol=1e-3)
    np.testing.assert_allclose(high, [1.4, 1.2, 1, 0.1], atol=1e-3)


def test_cutmix_boxes_have_the_areas_of_the_closed_form():
    """A square of area s about a uniform centre keeps sqrt(s) - s/4 of each side within the image on average; with s
    uniform in 0..1 the area is 2 (1/4 - 1/10 + 1/96) = 0.3208."""
    drawn = draw_view(ViewSettings(cutmix=1.0), 0, 0, MANY)
    width, height = sides(drawn.pasted)
    assert (width * height).mean() == pytest.approx(2 * (1 / 4 - 1 / 10 + 1 / 96), abs=0.008)
    assert not drawn.partner_weight.any()
    width, height = sides(draw_view(ViewSettings(cutmix=0.3), 0, 0, MANY).pasted)
    assert 0.29 < (width * height).max() <= 0.3 + 1e-6


def test_with_mixup_and_cutmix_half_of_the_images_take_either():
    drawn = draw_view(ViewSettings(cutmix=1.0, mixup=0.5), 0, 0, MANY)
    pasted, mixed = drawn.pasted.any(1), drawn.partner_weight > 0
    assert not (pasted & mixed).any() and (pasted | mixed).all()
    assert pasted.double().mean() == pytest.approx(cutmix.PROBABILITY, abs=4 * 0.5 / MANY**0.5)
    assert drawn.partner_weight.max() == pytest.approx(0.5, abs=1e-3)


# -- the images, against torchvision -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("stored", "size"), [(64, 24), (24, 64), (32, 32), (16, 24)])
def test_a_crop_is_torchvisions_resized_crop(stored, size):
    pixels = torch.from_numpy(RNG.integers(0, 256, (30, 3, stored, stored)).astype(np.uint8))
    settings = ViewSettings(crop_scale=(0.08, 1.0), flip=True)
    batch, drawn = show(settings, pixels=pixels, size=size), draw_view(settings, 3, 1, 30)
    for index in range(30):
        left, top, right, bottom = (drawn.crop[index] * stored).round().int().tolist()
        expected = functional.resized_crop(pixels[index].float() / 255, top, left, bottom - top, right - left,
                                           [size, size], InterpolationMode.BICUBIC, antialias=True)
        flip = bool(drawn.flip[index])  # done before the resizing, whose sums then run from the other side
        expected = (expected.flip(2) if flip else expected).clamp(0, 1)
        torch.testing.assert_close(batch.images[index], expected, atol=2e-6 if flip else 0, rtol=0)


def test_a_crop_is_at_least_a_pixel():
    pixels = smooth(size=2)
    assert show(ViewSettings(crop_scale=(0.01, 0.02), crop_ratio=(0.1, 10.0)), pixels=pixels).images.isfinite().all()


POLICIES = {"randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide}


def torchvisions(image, policy, name, bin_, sign):
    """The operation as torchvision's class does it, on floats. Translations by parts of a pixel, which ours are not
    rounded to; TrivialAugment's are of 224 pixels."""
    size = image.shape[-1]
    magnitudes, signed = POLICIES[policy]._AUGMENTATION_SPACE[name]
    magnitude = 0.0 if magnitudes(31, size, size) is None else float(magnitudes(31, size, size)[bin_])
    magnitude *= sign if signed else 1
    if name.startswith("Translate"):
        by = magnitude * (size / 224 if policy == "trivialaugment" else 1)
        return functional.affine(image, 0.0, [by, 0.0] if name == "TranslateX" else [0.0, by], 1.0, [0.0, 0.0],
                                 InterpolationMode.BILINEAR)
    own = POLICIES[policy](interpolation=InterpolationMode.BILINEAR)
    return own._apply_image_or_video_transform(image, name, magnitude, own.interpolation, own._fill)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", auto.OPS)
def test_every_operation_is_torchvisions(name, policy, channels):
    assert tuple(POLICIES[policy]._AUGMENTATION_SPACE) == auto.OPS
    images = smooth(6, channels, 32).float() / 255.1  # no pixel lies exactly at a threshold
    bins, signs = [0, 3, 9, 18, 27, 30], [1, -1] * 3
    draws = [[(auto.OPS.index(name) + 0.5) / 14, 0.25 if sign < 0 else 0.75, (bin_ + 0.5) / 31]
             for bin_, sign in zip(bins, signs, strict=True)]
    ops, magnitudes = auto.draw(np.array(draws), policy, None)
    ours = auto.apply(images.clone(), torch.from_numpy(ops), torch.from_numpy(magnitudes).float())
    for index, image in enumerate(images):
        theirs = torchvisions(image, policy, name, bins[index], signs[index])
        torch.testing.assert_close(ours[index], theirs, atol=1e-4, rtol=0)


def test_two_operations_follow_each_other_in_every_image_of_a_batch():
    settings = ViewSettings(auto_augment="randaugment", randaug_magnitude=15)
    batch, drawn = show(settings, size=16), draw_view(settings, 3, 1, 30)
    for index, image in enumerate(PIXELS.float() / 255):
        for op, magnitude in zip(drawn.ops[index].tolist(), drawn.magnitudes[index].tolist(), strict=True):
            image = torchvisions(image, "randaugment", auto.OPS[op], 15, -1 if magnitude < 0 else 1)
        # An operation that has steps may turn a difference of rounding into one of a step.
        assert ((batch.images[index] - image).abs() > 1e-3).float().mean() < 0.01


def test_jitter_is_torchvisions_in_the_drawn_order():
    settings = ViewSettings(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2)
    batch, drawn = show(settings, size=16), draw_view(settings, 3, 1, 30)
    for index, image in enumerate(PIXELS.float() / 255):
        for kind in drawn.jitter_order[index].tolist():
            image = getattr(functional, f"adjust_{JITTER[kind]}")(image, drawn.jitter_amounts[index, kind].item())
        torch.testing.assert_close(batch.images[index], image, atol=1e-4, rtol=0)


def test_grey_images_have_neither_saturation_nor_hue():
    grey = smooth(channels=1)
    plain = show(ViewSettings(), pixels=grey).images
    assert torch.equal(show(ViewSettings(saturation=0.5, hue=0.5), pixels=grey).images, plain)
    assert not torch.equal(show(ViewSettings(brightness=0.5), pixels=grey).images, plain)


def test_cutmix_weighs_the_label_by_the_pixels_that_are_the_partners():
    """Images of one value each, so that every pixel says whose it is."""
    pixels = (8 * torch.arange(30, dtype=torch.uint8))[:, None, None, None].expand(-1, 3, 16, 16)
    for size in (16, 31):
        batch, drawn = show(ViewSettings(cutmix=1.0), pixels=pixels, size=size), draw_view(EACH["cutmix"], 3, 1, 30)
        own = torch.arange(30).float() * 8 / 255
        ours, theirs = ((batch.images[:, 0] - value[:, None, None]).abs().lt(1e-4).sum((1, 2))
                        for value in (own, own[drawn.partner]))
        different = drawn.partner != torch.arange(30)
        assert (ours + theirs == size**2)[different].all()
        assert torch.equal(batch.partner_weight[different], (theirs / size**2)[different])
        assert torch.equal(batch.partner_labels, LABELS[drawn.partner])


# -- settings ---------------------------------------------------------------------------------------------------------


def test_presets_stand_for_their_documented_values():
    def given(name):
        return ViewSettings(augment=name).written_out.model_dump(exclude_defaults=True)

    assert given("light") == {"flip": True, "crop_scale": (0.5, 1.0)}
    assert given("timm") == {"flip": True, "crop_scale": (0.08, 1.0), "brightness": 0.4, "contrast": 0.4,
                             "saturation": 0.4}
    assert given("deit") == {"flip": True, "crop_scale": (0.08, 1.0), "auto_augment": "randaugment", "randaug_ops": 1,
                             "randaug_magnitude": 27, "erase": 0.25, "mixup": 0.5, "cutmix": 1.0}


def test_the_timm_preset_has_the_values_of_timms_own_transform():
    from timm.data import create_transform

    crop_, flip, colours, *_ = create_transform(224, is_training=True).transforms
    settings = ViewSettings(augment="timm")
    assert (crop_.scale, flip.p, settings.flip) == (settings.crop_scale, 0.5, True)
    assert crop_.ratio == pytest.approx(settings.crop_ratio)
    assert [tuple(getattr(colours, name)) for name in JITTER[:3]] == 3 * [(0.6, 1.4)] and colours.hue is None
    assert settings.jitter == (0.4, 0.4, 0.4, 0.0)


def test_what_is_set_beside_a_preset_wins_and_survives_being_stored(tmp_path):
    config = load_study("digits", ("views.augment=deit", "views.flip=false", "views.erase=0"))
    assert (config.views.flip, config.views.erase, config.views.cutmix, config.views.shift) == (False, 0, 1, 1)
    (tmp_path / "study.toml").write_text(config.to_toml())
    stored = load_study(str(tmp_path / "study.toml"))
    assert stored.views == config.views
    other = load_study(str(tmp_path / "study.toml"), ("views.augment=light",)).views
    assert (other.flip, other.crop_scale, other.cutmix, other.shift) == (False, (0.5, 1.0), 0, 1)
    assert load_study(str(tmp_path / "study.toml"), ("views.augment=none",)).views == load_study("digits").views
    smoke = load_study("digits", ("views.augment=light",), smoke=True).views
    assert (smoke.flip, smoke.crop_scale, smoke.mixup) == (True, (0.5, 1.0), 0.5)


def test_a_fingerprint_depends_on_the_values_alone():
    plain = load_study("digits")
    assert view_inputs(plain) == {"shift": 1, "mixup": 0.5}  # as before there were presets
    by_name = load_study("digits", ("views.augment=deit", "views.flip=false"))
    values = [f"views.{name}={list(value) if isinstance(value, tuple) else str(value).lower()}"
              for name, value in AUGMENT["deit"].items() if name != "flip"]
    assert view_inputs(by_name) == view_inputs(load_study("digits", tuple(values)))
    assert view_inputs(by_name) != view_inputs(load_study("digits", ("views.augment=deit",)))


def test_a_logits_file_names_the_augmentation_as_it_always_did_and_a_preset_by_its_values():
    def named(*overrides):
        return json.loads(json.dumps(view_settings(SimpleNamespace(config=load_study("digits", overrides)))))

    assert json.dumps(named()) == '{"shift": 1, "flip": false, "scale": 0.0, "mixup": 0.5}'
    assert named("views.augment=deit", "views.erase_teacher=false") == named() | {
        "flip": True, "crop_scale": [0.08, 1.0], "auto_augment": "randaugment", "randaug_ops": 1,
        "randaug_magnitude": 27, "erase": 0.25, "erase_teacher": False, "cutmix": 1.0}


def stages_done_again(study, *overrides):
    """The names of a finished study's stages, and of those whose inputs are others with these settings."""
    before, after = (Study(load_study(str(study), given), Storage(study)).stages for given in ((), overrides))
    return set(before), {name for name in before if before[name].inputs() != after[name].inputs()}


def test_what_the_teacher_sees_is_no_concern_of_its_training_nor_of_the_baseline(synthetic_study, tmp_path):
    """With erase_teacher = false the logits and what learns from them are done again; the rest is not."""
    erasing = write_finished(tmp_path / "digits-smoke", "views.erase=0.25")
    there, again = stages_done_again(erasing, "views.erase_teacher=false")
    assert again == {"teacher_logits", "distill", "finalists", "confirm"} & there
    assert {"teacher_logits", "distill", "confirm"} <= again and {"teacher", "baseline"} <= there - again
    assert stages_done_again(synthetic_study, "views.erase_teacher=false")[1] == set()  # nothing is erased


def test_a_plan_spells_a_preset_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = here("plan", "digits", "--set", "views.augment=timm", "--set", "views.flip=false")
    assert code == 0, err
    assert ("views timm: shift = 1, crop_scale = [0.08, 1.0], brightness = 0.4, contrast = 0.4, saturation = 0.4, "
            "mixup = 0.5") in " ".join(out.split())


def test_images_of_other_channels_are_refused_in_one_line():
    for override, named in (("views.hue=0.1", "views.hue = 0.1"), ("views.augment=timm", "views.brightness = 0.4"),
                            ("views.augment=deit", "views.auto_augment = 'randaugment'")):
        with pytest.raises(UserError) as error:
            check_views(load_study("digits", (override,)), channels=4)
        assert str(error.value).startswith(f"{named} changes grey and RGB images only, and these have 4 channels")
        check_views(load_study("digits", (override,)), channels=1)
    check_views(load_study("digits", ("views.augment=light", "views.erase=0.5", "views.cutmix=1.0")), channels=4)
    settings = ViewSettings(erase=0.5, cutmix=1.0, crop_scale=(0.5, 1.0))
    assert show(settings, pixels=smooth(channels=4)).images.shape == (30, 4, 24, 24)
