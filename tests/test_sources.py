"""Where images come from: what is read, what is refused, and in which words."""

import io
import json
import os
import shutil
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kdstudy.cli.main import main
from kdstudy.trainables import data
from kdstudy.trainables.data import load
from kdstudy.trainables.images import ImageSet, Raw
from kdstudy.trainables.settings import DataSettings
from kdstudy.trainables.sources import assembly

NAMES = ("bird", "cat", "dog")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KDSTUDY_CACHE", str(tmp_path / "cache"))


def picture(seed: int, size: tuple[int, int] = (8, 8), grey: bool = False) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0]) if grey else (size[1], size[0], 3))
    return Image.fromarray(pixels.astype(np.uint8))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(folder, splits=("train", "test"), per_class=12, **how):
    """An image folder; the pixels of an image follow from its split, class and number."""
    for split in splits:
        for label, name in enumerate(NAMES):
            (folder / split / name).mkdir(parents=True)
            for number in range(per_class):
                seed = 1000 * ["train", "val", "test"].index(split) + 100 * label + number
                picture(seed, **how).save(folder / split / name / f"{number}.png")
    return folder


def write_parquet(path, labels, *, seed=0, column="label", metadata=None, extra=None):
    images = [{"bytes": png(picture(seed + index)), "path": f"{index}.png"} for index in range(len(labels))]
    table = pa.table({"img": images, column: labels, **(extra or {})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path)


def described(names, column="label"):
    features = {column: {"names": names, "_type": "ClassLabel"}}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def read(source, **settings):
    return load(DataSettings(source=str(source), **settings))


# -- what is read -----------------------------------------------------------------------------------------------------


def test_an_image_folder_gives_its_splits_names_and_pixels(tmp_path):
    splits = read(write_folder(tmp_path / "pets", ("train", "val", "test")))
    assert splits.class_names == NAMES
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (36, 36, 36)
    expected = np.asarray(picture(2000 + 100 * 1 + 11)).transpose(2, 0, 1)  # test/cat/11.png, fourth in order of names
    index = np.flatnonzero(splits.test.labels == 1)[3]
    assert (splits.test.images[index] == expected).all()


def test_an_image_folder_without_splits_holds_out_stratified_shares(tmp_path):
    write_folder(tmp_path / "pets", ("train",), per_class=20)
    splits = read(tmp_path / "pets" / "train", validation=0.1, test=0.2)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (42, 6, 12)
    assert (np.bincount(splits.test.labels) == 4).all() and (np.bincount(splits.validation.labels) == 2).all()
    everything = np.concatenate([part.images for part in (splits.train, splits.validation, splits.test)])
    assert len(np.unique(everything, axis=0)) == 60


def test_images_of_any_size_are_brought_to_the_stored_size_and_grey_ones_stay_grey(tmp_path):
    folder = write_folder(tmp_path / "pets", grey=True)
    picture(5, (30, 20), grey=True).save(folder / "train" / "cat" / "wide.jpg")
    splits = read(folder, stored_size=16)
    assert splits.train.images.shape[1:] == (1, 16, 16)
    flat = tmp_path / "flat"
    write_folder(flat)
    Image.new("RGB", (40, 24), (200, 100, 50)).save(flat / "train" / "dog" / "flat.png")
    splits = read(flat, image_size=12)
    plain = [image for image in splits.train.images if image.std(axis=(1, 2)).max() == 0]
    assert [tuple(image[:, 5, 5]) for image in plain] == [(200, 100, 50)]


def test_decoded_images_are_kept_until_a_file_changes(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "pets")
    first = read(folder)
    monkeypatch.setattr(assembly, "decode", lambda *_: pytest.fail("decoded again"))
    again = read(folder)
    assert (first.train.images == again.train.images).all() and again.class_names == NAMES
    monkeypatch.undo()
    monkeypatch.setenv("KDSTUDY_CACHE", str(tmp_path / "cache"))
    Image.new("RGB", (8, 8)).save(folder / "test" / "cat" / "0.png")
    assert (read(folder).test.images.max(axis=(1, 2, 3)) == 0).sum() == 1


def test_a_folder_is_read_where_no_cache_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KDSTUDY_CACHE", str(tmp_path / "file" / "cache"))
    assert len(read(write_folder(tmp_path / "pets")).test) == 36


@pytest.mark.parametrize("names", [
    ("train.parquet", "test.parquet"),
    ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
    ("default/train/0000.parquet", "default/test/0000.parquet"),
])
def test_parquet_in_the_hugging_face_layouts(tmp_path, names):
    for name, seed in zip(names, (0, 500), strict=True):
        write_parquet(tmp_path / "p" / name, [0, 1, 2] * 8, seed=seed, metadata=described(NAMES))
    splits = read(tmp_path / "p", validation=0.25)
    assert splits.class_names == NAMES and (len(splits.train), len(splits.validation), len(splits.test)) == (18, 6, 24)
    assert (splits.test.images[4] == np.asarray(picture(504)).transpose(2, 0, 1)).all()


def test_parquet_names_may_be_words_or_a_column_of_names(tmp_path):
    words = [NAMES[index % 3] for index in range(24)]
    for split, seed in (("train", 0), ("test", 500)):
        write_parquet(tmp_path / "words" / f"{split}.parquet", words, seed=seed)
        write_parquet(tmp_path / "both" / f"{split}.parquet", [2, 0, 1] * 8, seed=seed,
                      extra={"class_name": ["dog", "bird", "cat"] * 8})
    assert read(tmp_path / "words").class_names == NAMES
    both = read(tmp_path / "both")
    assert both.class_names == NAMES and list(both.test.labels[:3]) == [2, 0, 1]


def test_of_several_label_columns_one_is_chosen_by_name(tmp_path):
    for split, seed in (("train", 0), ("test", 500)):
        write_parquet(tmp_path / "p" / f"{split}.parquet", [0, 1, 2] * 8, seed=seed, column="fine",
                      extra={"coarse": [0, 1] * 12})
    with pytest.raises(ValueError, match=r"Set data\.label_column to one of fine, coarse"):
        read(tmp_path / "p")
    assert len(read(tmp_path / "p", label_column="coarse").class_names) == 2


def test_sixteen_bits_of_grey_are_scaled_to_eight_and_categories_are_words(tmp_path):
    folder = write_folder(tmp_path / "deep", grey=True)
    ramp = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(ramp).save(folder / "test" / "cat" / "0.png")
    splits = read(folder)
    assert splits.channels == 1
    assert (splits.test.images[np.flatnonzero(splits.test.labels == 1)[0], 0] == ramp // 257).all()
    words = pa.array(["b", "a"] * 12).dictionary_encode()
    for split, seed in (("train", 0), ("test", 500)):
        write_parquet(tmp_path / "p" / f"{split}.parquet", words, seed=seed)
    assert read(tmp_path / "p").class_names == ("a", "b")


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (1, 8, 8), (8, 8, 3), (3, 8, 8)])
def test_arrays_of_every_layout(tmp_path, shape):
    images = np.random.default_rng(0).integers(0, 256, (30, *shape)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(30) % 3, class_names=np.array(NAMES))
    splits = read(tmp_path / "a.npz")
    assert splits.channels == (3 if 3 in shape else 1) and splits.class_names == NAMES
    np.savez(tmp_path / "m.npz", train_images=images, train_labels=(np.arange(30) % 3)[:, None],
             val_images=images[:9], val_labels=np.arange(9) % 3, test_images=images[:6], test_labels=np.arange(6) % 3)
    splits = read(tmp_path / "m.npz")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (30, 9, 6)
    assert splits.duplicates == {"train_validation": 9, "train_test": 6, "validation_test": 6}


def test_a_uri_is_read_like_a_path(tmp_path):
    folder = write_folder(tmp_path / "pets")
    assert (read(folder.as_uri()).test.images == read(folder).test.images).all()


def test_a_data_set_of_torchvision_is_read_from_its_own_files(tmp_path):
    raw = tmp_path / "cache" / "torchvision" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", 100), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + images.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
    splits = load(DataSettings(source="fashion-mnist", validation=0.2))
    assert splits.class_names[0] == "T-shirt/top" and splits.train.images.shape == (80, 1, 28, 28)
    assert (splits.test.images[:, 0] == images).all() and (splits.test.labels == np.arange(20) % 10).all()


def test_without_a_network_it_says_which_file_to_put_where(tmp_path, monkeypatch):
    from torchvision import datasets

    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(datasets.cifar, "download_and_extract_archive", refuse)
    with pytest.raises(ValueError) as caught:
        load(DataSettings(source="cifar100"))
    message = str(caught.value)
    assert "cifar-100-python.tar.gz" in message and str(tmp_path / "cache" / "torchvision") in message
    assert "\n" not in message


def test_images_that_memory_cannot_hold_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "pets")
    monkeypatch.setattr(os, "sysconf", lambda name: 100)  # 100 pages of 100 bytes
    with pytest.raises(ValueError, match=r"GiB of memory; make data\.stored_size smaller"):
        read(folder)


# -- what is made of it -----------------------------------------------------------------------------------------------


def raw(train=60, test=30, classes=6, seed=0):
    rng = np.random.default_rng(seed)

    def images(count):
        return ImageSet(rng.integers(0, 256, (count, 1, 4, 4)).astype(np.uint8), np.arange(count) % classes)

    return Raw(tuple("abcdef"[:classes]), images(train), None, images(test))


def test_a_subset_of_classes_is_evenly_spread_or_named_and_renumbered():
    spread = data._subset(raw(), 3)
    assert spread.class_names == ("a", "c", "e") and sorted(set(spread.train.labels)) == [0, 1, 2]
    named = data._subset(raw(), ("e", "b"))
    assert named.class_names == ("b", "e") and len(named.train) == 20
    assert (named.train.images == raw().train.images[np.isin(raw().train.labels, [1, 4])]).all()
    with pytest.raises(ValueError, match=r"data\.classes: 'z' is not a class"):
        data._subset(raw(), ("a", "z"))


def test_an_empty_class_can_be_left_out(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(30) % 2 * 2)
    assert read(tmp_path / "a.npz", classes=("0", "2"), validation=0.2).class_names == ("0", "2")


def test_amounts_are_shares_or_numbers_for_both_or_for_the_student_alone():
    splits = data.split(raw(), DataSettings(validation=0.2, train_images=0.5, student_images=12, unlabelled=1.0))
    assert (len(splits.train), len(splits.student_train), len(splits.unlabelled)) == (24, 12, 12)
    assert (np.bincount(splits.student_train.labels) == 2).all()
    both = np.concatenate([splits.student_train.images, splits.unlabelled.images])
    assert {image.tobytes() for image in both} == {image.tobytes() for image in splits.train.images}
    assert len(data.split(raw(), DataSettings(validation=0.2, limit=12)).test) == 12


def test_duplicates_across_splits_are_counted_and_can_be_dropped_from_training():
    source = raw(train=120)
    source.train.images[:5] = source.test.images[:5]
    kept = data.split(source, DataSettings(validation=0.1))
    assert kept.duplicates["train_test"] + kept.duplicates["validation_test"] == 5 and kept.dropped == 0
    dropped = data.split(source, DataSettings(validation=0.1, drop_duplicates=True))
    assert dropped.dropped == kept.duplicates["train_test"] > 0
    assert len(dropped.train) == len(kept.train) - dropped.dropped
    left = {image.tobytes() for image in dropped.train.images}
    assert not left & {image.tobytes() for image in dropped.test.images}


@pytest.mark.skipif("KDSTUDY_CIFAR100" not in os.environ, reason="KDSTUDY_CIFAR100 does not say where CIFAR-100 lies")
@pytest.mark.slow
def test_cifar100_from_parquet_is_what_is_known_of_it():
    splits = read(os.environ["KDSTUDY_CIFAR100"], validation=0.1)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (45_000, 5_000, 10_000)
    assert len(splits.class_names) == 100 and splits.class_names[0] == "apple" and splits.class_names[99] == "worm"
    assert (np.bincount(splits.train.labels) == 450).all() and (np.bincount(splits.test.labels) == 100).all()
    # Ten images of the original are in train and in test.
    assert splits.duplicates["train_test"] + splits.duplicates["validation_test"] == 10
    # The published means of the training images.
    everything = np.concatenate([splits.train.images, splits.validation.images])
    assert everything.mean(axis=(0, 2, 3)) / 255 == pytest.approx([0.5071, 0.4866, 0.4409], abs=2e-4)


# -- what is refused --------------------------------------------------------------------------------------------------


def folder_with(tmp_path, change):
    folder = write_folder(tmp_path / "pets")
    change(folder)
    return folder


def arrays(tmp_path, **arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    return tmp_path / "a.npz"


def parquet(tmp_path, train, test=None, **how):
    write_parquet(tmp_path / "p" / "train.parquet", train, **how)
    write_parquet(tmp_path / "p" / "test.parquet", train if test is None else test, seed=500, **how)
    return tmp_path / "p"


def write_bytes(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


U8 = np.zeros((30, 8, 8), np.uint8)
def parquet_without_labels(tmp):
    write_parquet(tmp / "q" / "train.parquet", [0.5, 1.5] * 6, column="score")
    return tmp / "q"


BAD = {
    "missing folder": (lambda tmp: tmp / "nowhere", {}, "is neither a known name nor an existing file or folder"),
    "misspelt name": (lambda tmp: "cifar-100", {}, "did you mean 'cifar100'?"),
    "moved folder": (lambda tmp: "pictures/of-pets", {}, "pictures/of-pets); known names: digits"),
    "unknown scheme": (lambda tmp: "ftp8://host/data", {}, "cannot be opened"),
    "no images": (lambda tmp: write_bytes(tmp / "e" / "notes.txt", b"x").parent, {}, "holds no images: looked for"),
    "a file of another kind": (lambda tmp: write_bytes(tmp / "images.rar", b"x"), {}, "is a file of an unknown kind"),
    "folder one level too high": (lambda tmp: (folder_with(tmp, lambda f: None), tmp)[1], {},
                                  "name the one right above them"),
    "no column of labels": (lambda tmp: parquet_without_labels(tmp), {}, "no column can hold labels"),
    "empty class": (lambda tmp: folder_with(tmp, lambda f: [(f / split / "fox").mkdir() for split in
                                            ("train", "test")]), {}, "class 'fox' has no image in its train split"),
    "classes differ": (lambda tmp: folder_with(tmp, lambda f: (f / "test" / "dog").rename(f / "test" / "wolf")), {},
                       "the classes of train and test differ: test lacks 'dog'"),
    "corrupt image": (lambda tmp: folder_with(tmp, lambda f: (f / "train/cat/3.png").write_bytes(b"no image")), {},
                      "train/cat/3.png cannot be decoded (it is not an image)"),
    "truncated image": (lambda tmp: folder_with(tmp, lambda f: (f / "train/cat/3.png").write_bytes(
        (f / "train/cat/3.png").read_bytes()[:120])), {}, "train/cat/3.png cannot be decoded"),
    "image outside a class": (lambda tmp: folder_with(tmp, lambda f: picture(1).save(f / "train" / "stray.png")), {},
                              "train/stray.png is not in a class folder"),
    "no train folder": (lambda tmp: folder_with(tmp, lambda f: (f / "train").rename(f / "val")), {},
                        "has test, val but no train folder"),
    "two validation folders": (lambda tmp: folder_with(tmp, lambda f: [write_folder(f, ("val",)),
                               (f / "valid").mkdir(), picture(1).save(f / "valid" / "x.png")]), {},
                               "two folders for one split"),
    "one class": (lambda tmp: folder_with(tmp, lambda f: [shutil.rmtree(f / split / name) for split in ("train", "test")
                                                          for name in ("cat", "dog")]), {}, "has 1 class"),
    "too few to stratify": (lambda tmp: folder_with(tmp, lambda f: [path.unlink() for path in
                            sorted((f / "train" / "cat").iterdir())[1:]]), {"validation": 0.2},
                            "data.validation = 0.2 cannot be stratified: a class has 1 image"),
    "a share of nothing": (lambda tmp: write_folder(tmp / "pets"), {"validation": 0.01},
                           "splitting off 1 of 36 images leaves one side with fewer images than the 3 classes"),
    "test share beside a test split": (lambda tmp: write_folder(tmp / "pets"), {"test": 0.2}, "remove data.test"),
    "unknown class": (lambda tmp: write_folder(tmp / "pets"), {"classes": ("cat", "dgo")}, "did you mean 'dog'?"),
    "more than there are": (lambda tmp: write_folder(tmp / "pets"), {"train_images": 5000},
                            "data.train_images = 5000 is more than the"),
    "nothing left without labels": (lambda tmp: write_folder(tmp / "pets"), {"unlabelled": 1.0},
                                    "make data.student_images smaller"),
    "no train parquet": (lambda tmp: [write_parquet(tmp / "p" / "test.parquet", [0, 1] * 5), tmp / "p"][1], {},
                         "none called train*.parquet"),
    "not parquet": (lambda tmp: write_bytes(tmp / "p" / "train.parquet", b"x").parent, {}, "is not a Parquet file"),
    "no image column": (lambda tmp: [(tmp / "p").mkdir(), pq.write_table(pa.table({"label": [0, 1]}),
                        tmp / "p" / "train.parquet"), tmp / "p"][2], {}, "needs one image column"),
    "labels out of range": (lambda tmp: parquet(tmp, [0, 1, 7] * 8, metadata=described(NAMES)), {},
                            "labels of its train split range from 0 to 7, but there are 3 classes"),
    "some hidden test labels": (lambda tmp: parquet(tmp, [0, 1, 2] * 8, [0, -1, 2] * 8, metadata=described(NAMES)), {},
                                "8 of the 24 images of its test split have no label, or a negative one"),
    "missing label": (lambda tmp: parquet(tmp, [0, 1, None] * 8), {},
                      "8 of the 24 images of its train split have no label"),
    "unknown column": (lambda tmp: parquet(tmp, [0, 1] * 8), {"label_column": "fine"}, "'fine' is not a column"),
    "words differ": (lambda tmp: parquet(tmp, ["a", "b"] * 8, ["a", "c"] * 8), {},
                     "the classes of train and test differ: test lacks 'b', adds 'c'"),
    "corrupt row": (lambda tmp: [pq.write_table(pa.table({"img": [{"bytes": b"x"}] * 4, "label": [0, 1, 0, 1]}),
                    write_bytes(tmp / "p" / "train.parquet", b"")), tmp / "p"][1], {},
                    "train.parquet, row 0 cannot be decoded"),
    "no label in one file": (lambda tmp: [parquet(tmp, [0, 1] * 8), write_parquet(tmp / "p" / "test-1.parquet", [0, 1],
                             column="other"), tmp / "p"][2], {}, "test-1.parquet has no column 'label'"),
    "words and numbers": (lambda tmp: parquet(tmp, ["a", "b"] * 8, [0, 1] * 8), {}, "the same in all files"),
    "labels with fractions": (lambda tmp: parquet(tmp, [0.5, 1.5] * 8), {}, "they must be integers or words"),
    "identifiers for labels": (lambda tmp: parquet(tmp, [0, 10**9] * 8), {}, "must be class numbers, counted from 0"),
    "not npz": (lambda tmp: write_bytes(tmp / "a.npz", b"x"), {}, "is not a .npz file"),
    "no labels": (lambda tmp: arrays(tmp, images=U8), {}, "needs arrays called images and labels"),
    "floats": (lambda tmp: arrays(tmp, images=U8 / 255, labels=np.arange(30) % 3), {}, "must be uint8, 0 to 255"),
    "five channels": (lambda tmp: arrays(tmp, images=np.zeros((30, 5, 8, 8), np.uint8), labels=np.arange(30) % 3), {},
                      "with 1 or 3 channels"),
    "labels and images": (lambda tmp: arrays(tmp, images=U8, labels=np.arange(29) % 3), {},
                          "images has 30 entries, but labels has 29"),
    "objects": (lambda tmp: arrays(tmp, images=U8, labels=np.array([{}] * 30)), {}, "holds Python objects"),
    "a class of nobody": (lambda tmp: arrays(tmp, images=U8, labels=np.arange(30) % 2 * 2), {"classes": ("0", "1")},
                          "class '1' has no image"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_source_gets_one_line_that_names_it(case, tmp_path):
    make, settings, expected = BAD[case]
    source = make(tmp_path)
    with pytest.raises(ValueError) as caught:
        read(source, **settings)
    message = str(caught.value)
    assert expected in message and "\n" not in message
    assert message.startswith("data.")


def test_the_command_says_it_in_one_line_with_exit_code_2(tmp_path, capsys, monkeypatch):
    folder = folder_with(tmp_path, lambda f: (f / "train/cat/3.png").write_bytes(b"no image"))
    monkeypatch.setattr("sys.argv", ["kdstudy", "run", "digits", "--set", f"data.source={folder}", "--set",
                                     "data.student_images=1.0", "--dir", str(tmp_path / "study")])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and "train/cat/3.png cannot be decoded (it is not an image)" in error
