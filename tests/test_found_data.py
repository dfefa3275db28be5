"""Data sets as they are found: what is made of them, what is noted about it, and what is refused."""

import csv
import gzip
import io
import os
import shutil
import struct
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub import Hub
from PIL import Image
from synthetic import here
from test_sources import NAMES, described, picture, png, read, write_folder, write_parquet
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from kdstudy.config.load import load_study
from kdstudy.config.permission import Named, functions_allowed
from kdstudy.config.settings import StudyConfig
from kdstudy.errors import UserError
from kdstudy.store.check import check
from kdstudy.store.files import read_json, write_json
from kdstudy.store.fingerprints import hash_images
from kdstudy.store.storage import Storage
from kdstudy.study import Study
from kdstudy.trainables.images import ImageSet
from kdstudy.trainables.settings import DataSettings
from kdstudy.trainables.sources import archives


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KDSTUDY_CACHE", str(tmp_path / "cache"))


def classes_of(folder, counts, suffix="png", **how):
    """A folder per class with so many images; the pixels of an image follow from its class and number."""
    for label, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            picture(1000 * label + number, **how).save(folder / name / f"{number:03d}.{suffix}")
    return folder


def flat(folder, count=30):
    """Images without class folders: 000.png and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture(number).save(folder / f"{number:03d}.png")
    return folder


def text(path, *lines, end="\n", encoding="utf-8"):
    path.write_bytes("".join(f"{line}{end}" for line in lines).encode(encoding))
    return path


def counts(images: ImageSet, classes: int) -> list[int]:
    return np.bincount(images.labels, minlength=classes).tolist()


def all_counts(splits) -> list[list[int]]:
    return [counts(part, len(splits.class_names)) for part in (splits.train, splits.validation, splits.test)]


# -- splits that nobody asked for -------------------------------------------------------------------------------------


def test_twelve_classes_of_eight_are_split(tmp_path):
    folder = classes_of(tmp_path / "x", {f"c{number:02d}": 8 for number in range(12)})
    train, validation, test = all_counts(read(folder))
    assert validation == [1] * 12 and min(train) >= 5 and min(test) >= 1 and sum(test) == 20
    with pytest.raises(ValueError, match=r"^data\.validation = 0\.1 cannot be stratified.*choose another amount$"):
        read(folder, validation=0.1)


def test_classes_of_3_and_300_keep_an_image_of_each_on_every_side(tmp_path):
    folder = classes_of(tmp_path / "x", {"rare": 3, "usual": 300})
    splits = read(folder)
    assert all_counts(splits) == [[1, 210], [1, 30], [1, 60]] and splits.notes == ()
    everything = np.concatenate([part.images for part in (splits.train, splits.validation, splits.test)])
    assert len(np.unique(everything, axis=0)) == 303
    assert all(hash_images(getattr(splits, name)) == hash_images(getattr(read(folder), name))
               for name in ("train", "validation", "test"))
    assert all_counts(read(folder, limit=24)) == [[1, 23], [1, 23], [1, 23]]


def test_classes_too_small_to_be_on_every_side_are_noted(tmp_path):
    splits = read(classes_of(tmp_path / "x", {"a": 1, "b": 2, "c": 2, "d": 30}))
    assert all_counts(splits) == [[1, 1, 1, 21], [0, 0, 1, 3], [0, 1, 0, 6]]
    assert splits.notes == ("2 classes, 'a', 'c', have too few images to be in the test split too",
                            "2 classes, 'a', 'b', have too few images to be in the validation split too")
    with pytest.raises(ValueError, match=r"^data\.test = 0\.2 cannot be held out: there are no two images of a class"):
        read(classes_of(tmp_path / "y", {"a": 1, "b": 1}))


# -- splits without labels --------------------------------------------------------------------------------------------

LEFT_OUT = r"^the test split of the data is left out \({}\); a share of the training images takes its place$"
HIDDEN = {
    "Kaggle's test folder": (lambda tmp: [classes_of(tmp / "x" / "train", dict.fromkeys(NAMES, 10)),
                                          flat(tmp / "x" / "test", 8), tmp / "x"][2],
                             "its 8 images are not in class folders"),
    "one folder in test": (lambda tmp: [classes_of(tmp / "x" / "train", dict.fromkeys(NAMES, 10)),
                                        flat(tmp / "x" / "test" / "unknown", 8), tmp / "x"][2],
                           "its 8 images are all in one folder, test/unknown, which is no class of train"),
    "an empty test folder": (lambda tmp: [classes_of(tmp / "x" / "train", dict.fromkeys(NAMES, 10)),
                                          (tmp / "x" / "test").mkdir(), tmp / "x"][2], "there is no image in test/"),
    "-1 in Parquet": (lambda tmp: parquet(tmp, [0, 1, 2] * 10, [-1] * 8, metadata=described(NAMES)),
                      "none of its 8 images has a label"),
    "no labels in Parquet": (lambda tmp: parquet(tmp, [0, 1, 2] * 10, pa.array([None] * 8, pa.int64())),
                             "none of its 8 images has a label"),
    "no words in Parquet": (lambda tmp: parquet(tmp, list(NAMES) * 10, pa.array([None] * 8, pa.string())),
                            "none of its 8 images has a label"),
    "no rows in Parquet": (lambda tmp: parquet(tmp, [0, 1, 2] * 10, pa.array([], pa.int64())), "it is empty"),
    "no column in Parquet": (lambda tmp: [parquet(tmp, [0, 1, 2] * 10), write_parquet(
        tmp / "p" / "test.parquet", [0, 1] * 4, column="id"), tmp / "p"][2], "its files have no column 'label'"),
    "-1 in arrays": (lambda tmp: arrays(tmp, x_train=U8, y_train=L, x_test=U8[:8], y_test=np.full(8, -1)),
                     "none of its 8 images has a label"),
    "no array of labels": (lambda tmp: arrays(tmp, x_train=U8, y_train=L, x_test=U8[:8]),
                           "x_test has no labels beside it"),
    "an empty array": (lambda tmp: arrays(tmp, x_train=U8, y_train=L, x_test=U8[:0], y_test=L[:0]), "it is empty"),
    "-1 in a CSV file": (lambda tmp: [flat(tmp / "x" / "train"), flat(tmp / "x" / "test", 8),
                         text(tmp / "x" / "metadata.csv", "file_name,label", *(f"train/{n:03d}.png,{n % 3}" for n in
                              range(30)), *(f"test/{n:03d}.png,-1" for n in range(8))), tmp / "x"][3],
                         "none of its 8 images has a label"),
}
U8, L = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3)).astype(np.uint8), np.arange(30) % 3


def parquet(tmp, train, test=None, **how):
    write_parquet(tmp / "p" / "train.parquet", train, **how)
    if test is not None:
        write_parquet(tmp / "p" / "test.parquet", test, seed=500, **how)
    return tmp / "p"


def arrays(tmp, **named):
    np.savez(tmp / "a.npz", **named)
    return tmp / "a.npz"


@pytest.mark.parametrize("case", HIDDEN)
def test_a_split_without_labels_is_left_out_with_a_note(case, tmp_path):
    make, why = HIDDEN[case]
    splits = read(make(tmp_path))
    assert all_counts(splits) == [[7, 7, 7], [1, 1, 1], [2, 2, 2]]
    (note,) = splits.notes
    assert note == LEFT_OUT.strip("^$").replace("\\", "").format(why)


def test_some_labels_missing_is_a_mistake(tmp_path):
    for test in ([0, -1, 2] * 3, [0, None, 2] * 3):
        with pytest.raises(ValueError, match="3 of the 9 images of its test split have no label, or a negative one"):
            read(parquet(tmp_path, [0, 1, 2] * 8, test))
    with pytest.raises(ValueError, match="15 of the 30 images of its train split have no label, or a negative one"):
        read(arrays(tmp_path, X=U8, y=np.array([-1, 1])[np.arange(30) % 2]))


# -- labels of every kind ---------------------------------------------------------------------------------------------

def test_a_number_of_classes_is_of_those_that_have_images(tmp_path):
    path = arrays(tmp_path, X=U8, y=np.array([1, 3, 5])[L])
    assert read(path, classes=2).class_names == ("1", "3") and read(path, classes=3).class_names == ("1", "3", "5")


KINDS = {
    "words": (np.array(NAMES)[L], NAMES, ""), "bytes": (np.array(NAMES).astype("S")[L], NAMES, ""),
    "true and false": (L > 0, ("0", "1"), ""), "whole floats": (L.astype(float), ("0", "1", "2"), ""),
    "a column": (L[:, None], ("0", "1", "2"), ""),
    "from 1": (L + 1, ("1", "2", "3"), "class '0' is left out, because no image has that label"),
    "holes": (np.array([0, 2, 5])[L], ("0", "2", "5"), "classes '1', '3', '4' are left out, because no image has that "
                                                       "label"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_every_kind_in_arrays_parquet_and_csv(kind, tmp_path):
    labels, names, note = KINDS[kind]
    plain = labels.ravel().tolist()
    plain = [label.decode() if isinstance(label, bytes) else label for label in plain]
    flat(tmp_path / "x")
    text(tmp_path / "x" / "metadata.csv", "file_name,label", *(f"{n:03d}.png,{label}" for n, label in enumerate(plain)))
    found = [read(arrays(tmp_path, X=U8, y=labels)), read(parquet(tmp_path, plain)), read(tmp_path / "x")]
    expected = np.unique(labels.ravel(), return_inverse=True)[1]
    for splits in found:
        assert splits.notes == ((note,) if note else ())
        every = np.concatenate([part.labels for part in (splits.train, splits.validation, splits.test)])
        assert (np.bincount(every) == np.bincount(expected)).all()
    assert [splits.class_names for splits in found[:2]] == [names, names]
    assert found[2].class_names == (("False", "True") if kind == "true and false" else names)


def test_names_without_images_and_names_twice_are_noted(tmp_path):
    splits = read(parquet(tmp_path, [0, 1, 3] * 8, metadata=described(["crane", "crane", "fox", "owl"])))
    assert splits.class_names == ("crane", "crane", "owl")
    assert splits.notes == ("class 'fox' is left out, because no image has that label",
                            "several classes have one name: 'crane'")


def test_object_arrays_are_refused_where_they_are_needed_and_not_elsewhere(tmp_path):
    with pytest.raises(ValueError, match=r"a\.npz': y holds Python objects, which are not read; save a plain array"):
        read(arrays(tmp_path, X=U8, y=np.array(NAMES, object)[L]))
    assert len(read(arrays(tmp_path, X=U8, y=L, about=np.array({"by": "me"}, object))).test) == 6


# -- arrays and Parquet -----------------------------------------------------------------------------------------------


def test_arrays_called_as_keras_calls_them(tmp_path):
    splits = read(arrays(tmp_path, x_train=U8, y_train=L[:, None], x_test=U8[:9], y_test=L[:9, None]))
    assert all_counts(splits) == [[9, 9, 9], [1, 1, 1], [3, 3, 3]]
    assert (splits.test.images == U8[:9].transpose(0, 3, 1, 2)).all()
    splits = read(arrays(tmp_path, X_train=U8, Y_train=L, X_val=U8[:6], Y_val=L[:6], X_test=U8[:9], Y_test=L[:9]))
    assert all_counts(splits) == [[10, 10, 10], [2, 2, 2], [3, 3, 3]]
    assert len(read(arrays(tmp_path, train_images=U8, train_labels=L, images=U8[:3], labels=L[:3])).train) == 21


@pytest.mark.parametrize(("names", "sizes"), [
    (("0000.parquet",), (21, 3, 6)), (("0000.parquet", "0001.parquet"), (42, 6, 12)),
    (("train/0000.parquet", "test/0000.parquet"), (27, 3, 30)),
    (("pets-train.parquet", "pets_test.PARQUET"), (27, 3, 30)), (("all.parquet", "test.parquet"), (27, 3, 30)),
    (("train.parquet", "other.parquet"), (21, 3, 6)),
])
def test_parquet_files_are_split_by_their_names(tmp_path, names, sizes):
    for number, name in enumerate(names):
        write_parquet(tmp_path / "p" / name, [0, 1, 2] * 10, seed=500 * number)
    splits = read(tmp_path / "p")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == sizes
    assert splits.notes == (("1 Parquet file whose names say no split is left out (first: other.parquet)",)
                            if "other.parquet" in names else ())
    if len(names) == 1:
        assert (read(tmp_path / "p" / names[0]).test.images == splits.test.images).all()


def test_parquet_files_of_several_configurations_are_refused(tmp_path):
    for number, size in enumerate(("160px", "320px")):
        for split in ("train", "test"):
            write_parquet(tmp_path / "p" / size / f"{split}-00000.parquet", [0, 1, 2] * 8, seed=500 * number)
    with pytest.raises(ValueError, match=r"files of its train split in several folders, '160px', '320px'; name"):
        read(tmp_path / "p")
    assert len(read(tmp_path / "p" / "160px").test) == 24
    for part in "ab":
        write_parquet(tmp_path / "q" / "data" / "train" / part / "0.parquet", [0, 1, 2] * 8, seed=ord(part))
    assert sum(map(sum, all_counts(read(tmp_path / "q")))) == 48


def test_parquet_images_may_be_plain_bytes(tmp_path):
    images = [png(picture(index)) for index in range(30)]
    pq.write_table(pa.table({"png": images, "label": list(L)}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"png": images, "mask": images, "label": list(L)}), tmp_path / "b.parquet")
    splits = read(tmp_path / "a.parquet")
    assert all_counts(splits) == [[7, 7, 7], [1, 1, 1], [2, 2, 2]]
    known = {np.asarray(picture(index)).transpose(2, 0, 1).tobytes() for index in range(30)}
    assert {image.tobytes() for image in splits.train.images} < known
    with pytest.raises(ValueError, match=r"Set data\.image_column to one of png, mask"):
        read(tmp_path / "b.parquet")
    assert (read(tmp_path / "b.parquet", image_column="png").train.images == splits.train.images).all()


# -- labels in a CSV file ---------------------------------------------------------------------------------------------

CSV = {
    "metadata.csv": (["file_name,label", *(f"images/{n:03d}.png,{NAMES[n % 3]}" for n in range(30))], {}),
    "names without a folder or suffix": (["id,breed", *(f"{n:03d},{NAMES[n % 3]}" for n in range(30))], {}),
    "BOM, CRLF, semicolons, quotes": (["\ufefffile;kind", *(f'"images\\{n:03d}.png";"{NAMES[n % 3]}"' for n in
                                                            range(30))], {"end": "\r\n"}),
    "tabs": (["file\tkind", *(f"./images/{n:03d}.png\t{NAMES[n % 3]}" for n in range(30))], {}),
    "no header": ([f"{n:03d}.png,{NAMES[n % 3]}" for n in range(30)], {}),
    "other columns": (["width,file,label,by", *(f"8,{n:03d}.png,{NAMES[n % 3]},me" for n in range(30))], {}),
    "a column of splits": (["file,label,split", *(f"{n:03d}.png,{NAMES[n % 3]},train" for n in range(30))], {}),
}


@pytest.mark.parametrize("case", CSV)
def test_a_csv_file_lists_the_labels(case, tmp_path):
    lines, how = CSV[case]
    flat(tmp_path / "x" / "images")
    name = "metadata.csv" if case == "metadata.csv" else "labels.csv"
    text(tmp_path / "x" / name, *lines, **how)
    splits = read(tmp_path / "x", labels=None if case == "metadata.csv" else name)
    assert splits.class_names == NAMES and splits.notes == ()
    assert all_counts(splits) == [[7, 7, 7], [1, 1, 1], [2, 2, 2]]
    labels = {np.asarray(picture(n)).transpose(2, 0, 1).tobytes(): n % 3 for n in range(30)}
    assert [labels[image.tobytes()] for image in splits.train.images] == splits.train.labels.tolist()


def test_metadata_in_the_folders_of_the_splits(tmp_path):
    for split, count in (("train", 30), ("test", 9)):
        flat(tmp_path / split, count)
        text(tmp_path / split / "metadata.csv", "file_name,label", *(f"{n:03d}.png,{n % 3}" for n in range(count)))
    assert all_counts(read(tmp_path)) == [[9, 9, 9], [1, 1, 1], [3, 3, 3]]
    text(tmp_path / "test" / "metadata.csv", "file_name,id", *(f"{n:03d}.png,{n}" for n in range(9)))
    splits = read(tmp_path)
    assert all_counts(splits) == [[7, 7, 7], [1, 1, 1], [2, 2, 2]]
    assert splits.notes[0].startswith("the test split of the data is left out (none of its 9 images has a label)")


def every_label(splits, count=30) -> dict[int, str]:
    """The name of each picture's class, by the number of the picture."""
    numbers = {np.asarray(picture(n)).transpose(2, 0, 1).tobytes(): n for n in range(count)}
    return {numbers[image.tobytes()]: splits.class_names[label]
            for part in (splits.train, splits.validation, splits.test)
            for image, label in zip(part.images, part.labels, strict=True)}


EXPECTED = {n: NAMES[n // 10] for n in range(30)}


def test_an_index_column_is_not_taken_for_the_column_of_files(tmp_path):
    for n in range(30):
        picture(29 - n).save(tmp_path / f"{n}.png")  # row n lists 29 - n, so that an index gives the wrong labels
    rows = [f"{n},{29 - n}.png,{NAMES[n // 10]}" for n in range(30)]
    for header in (",image,label", "id,image,label", ",what,breed"):
        text(tmp_path / "l.csv", header, *rows)
        assert every_label(read(tmp_path, labels="l.csv")) == EXPECTED, header
    text(tmp_path / "l.csv", ",image,label", *rows, "30,nope.png,cat", "31,31.png,cat")
    assert every_label(read(tmp_path, labels="l.csv", skip_unreadable=2)) == EXPECTED
    text(tmp_path / "l.csv", ",image,label", *(row.replace(".png", "") for row in rows))
    assert every_label(read(tmp_path, labels="l.csv")) == EXPECTED
    text(tmp_path / "l.csv", "one,other,label", *(f"{n}.png,{29 - n}.png,{NAMES[n // 10]}" for n in range(30)))
    with pytest.raises(ValueError, match=r"l\.csv: several columns name image files; set data\.image_column to one of "
                                         r"one, other$"):
        read(tmp_path, labels="l.csv")
    assert every_label(read(tmp_path, labels="l.csv", image_column="other")) == EXPECTED


def test_a_missing_file_is_not_replaced_by_another_of_its_name(tmp_path):
    flat(tmp_path / "a")
    (tmp_path / "b").mkdir()
    rows = [f"a/{n:03d}.png,{NAMES[n // 10]}" for n in range(30)]
    text(tmp_path / "l.csv", "file,label", *rows, "b/003.png,cat")
    with pytest.raises(ValueError, match=r"b/003\.png cannot be decoded \(line 32 of l\.csv names it, but there is no"):
        read(tmp_path, labels="l.csv")
    text(tmp_path / "l.csv", "file,label", *(f"/home/them/{row}" for row in rows))  # another machine's
    assert every_label(read(tmp_path, labels="l.csv")) == EXPECTED
    (tmp_path / "x").mkdir()
    for split, count in (("train", 30), ("test", 31)):
        flat(tmp_path / "x" / split, count)
    text(tmp_path / "x" / "train" / "metadata.csv", "file_name,label", *(f"{n:03d}.png,{n % 3}" for n in range(31)))
    with pytest.raises(ValueError, match=r"train/030\.png cannot be decoded \(line 32 of train/metadata\.csv names it"):
        read(tmp_path / "x")


def test_splits_are_named_by_any_folder_in_archives_too(tmp_path):
    for split, count in (("train", 30), ("test", 9)):
        flat(tmp_path / "x" / "data" / split, count)
        text(tmp_path / "x" / "data" / split / "metadata.csv", "file_name,label", *(
            f"{n:03d}.png,{n % 3}" for n in range(count)))
        flat(tmp_path / "y" / f"{split}_images", count)
    text(tmp_path / "y" / "l.csv", "file,label", *(f"{split}_images/{n:03d}.png,{n % 3}" for split, count in (
        ("train", 30), ("test", 9)) for n in range(count)))
    for name, settings in (("x", {}), ("y", {"labels": "l.csv"})):
        splits = read(tmp_path / name, **settings)
        assert all_counts(splits) == [[9, 9, 9], [1, 1, 1], [3, 3, 3]]
        assert same(read(zip_of(tmp_path / name, tmp_path / "x.zip"), **settings), splits)
    for name, count in (("test tube", 15), ("kettle", 15)):
        flat(tmp_path / "kinds" / name, count)
    text(tmp_path / "kinds" / "l.csv", "file,label", *(f"{name}/{n:03d}.png,{name}" for name in ("test tube", "kettle")
                                                       for n in range(15)))
    assert all_counts(read(tmp_path / "kinds", labels="l.csv")) == [[10, 11], [2, 1], [3, 3]]


def test_a_column_of_splits_with_other_words_is_refused_and_without_any_noted(tmp_path):
    flat(tmp_path)
    rows = [f"{n:03d}.png,{n % 3},{'test' if n < 9 else 'train'}" for n in range(28)]
    for last in ("extra", ""):
        text(tmp_path / "l.csv", "file,label,split", *rows, f"028.png,0,{last}")
        with pytest.raises(ValueError, match=rf"l\.csv: its column split holds '{last}' beside names of splits; write"):
            read(tmp_path, labels="l.csv")
    text(tmp_path / "l.csv", "file,label,fold", *(f"{n:03d}.png,{n % 3},{n % 2}" for n in range(30)))
    splits = read(tmp_path, labels="l.csv")
    assert len(splits.test) == 6 and splits.notes == ("the column fold of l.csv is not read, because it does not say "
                                                      "train, validation or test, but '0', '1'",)


def test_words_with_leading_zeros_are_not_numbers(tmp_path):
    flat(tmp_path)
    text(tmp_path / "l.csv", "file,label", *(f"{n:03d}.png,{('1', '01', '2.0')[n % 3]}" for n in range(30)))
    assert read(tmp_path, labels="l.csv").class_names == ("01", "1", "2.0")
    text(tmp_path / "l.csv", "file,label", *(f"{n:03d}.png,{('1', '0', '2.0')[n % 3]}" for n in range(30)))
    assert read(tmp_path, labels="l.csv").class_names == ("0", "1", "2")


def test_messages_name_the_line_of_the_file(tmp_path):
    flat(tmp_path, 3)
    text(tmp_path / "l.csv", "file,label,by", "", '000.png,0,"you', 'and me"', "001.png,1,me", "000.png,1,me")
    with pytest.raises(ValueError, match=r"has the label '0' in line 3 of l\.csv, but '1' in line 6 of l\.csv"):
        read(tmp_path, labels="l.csv")


def test_the_cache_does_not_let_a_bad_source_pass(tmp_path):
    classes_of(tmp_path / "x" / "train", dict.fromkeys(NAMES, 10))
    classes_of(tmp_path / "x" / "test", dict.fromkeys(NAMES[:2], 4))
    assert all_counts(read(tmp_path / "x", classes=NAMES[:2])) == [[9, 9], [1, 1], [4, 4]]
    with pytest.raises(ValueError, match="the classes of train and test differ: test lacks 'dog'"):
        read(tmp_path / "x")


def test_columns_of_a_csv_file_are_chosen_by_name_and_splits_by_a_column(tmp_path):
    flat(tmp_path)
    text(tmp_path / "l.csv", "a,file,b,c,set", *(f"{n % 3},{n:03d}.png,{n % 2},{(n + 1) % 30:03d}.png,"
                                                f"{'Test' if n < 12 else 'train'}" for n in range(30)))
    with pytest.raises(ValueError, match=r"which column holds the labels\? Set data\.label_column to one of a, b, c$"):
        read(tmp_path, labels="l.csv")
    assert all_counts(read(tmp_path, labels="l.csv", label_column="b")) == [[8, 8], [1, 1], [6, 6]]
    shifted = read(tmp_path, labels="l.csv", label_column="b", image_column="c")
    assert (shifted.test.images[0] == np.asarray(picture(1)).transpose(2, 0, 1)).all()


def listed(*changes):
    """A folder of images and a CSV file of their labels, with other rows at its end."""

    def make(tmp):
        flat(tmp / "x")
        text(tmp / "x" / "labels.csv", "file,label", *(f"{n:03d}.png,{n % 3}" for n in range(30)), *changes)
        return tmp / "x"

    return make


BAD_CSV = {
    "no such CSV": (listed(), {"labels": "label.csv"}, "data.labels = 'label.csv' is not a file in data.source = "),
    "a CSV elsewhere": (listed(), {"labels": "../x/labels.csv"}, "it holds 'labels.csv'"),
    "no such image": (listed("nope.png,1"), {}, "nope.png cannot be decoded (line 32 of labels.csv names it, but "),
    "no label": (listed("029.png,"), {}, "029.png has the label '2' in line 31 of labels.csv, but '' in line 32"),
    "two labels": (listed("000.png,1"), {}, "000.png has the label '0' in line 2 of labels.csv, but '1' in line 32"),
    "rows of unlike length": (listed("000.png"), {}, "is no table: its first row has 2 columns, line 32 1"),
    "one column": (lambda tmp: [flat(tmp / "x"), text(tmp / "x" / "labels.csv", "file", "000.png"), tmp / "x"][2], {},
                   "labels.csv has no column beside that of the files; it needs one of labels"),
    "nothing in it": (lambda tmp: [flat(tmp / "x"), text(tmp / "x" / "labels.csv"), tmp / "x"][2], {}, "is empty"),
    "no column of files": (lambda tmp: [flat(tmp / "x"), text(tmp / "x" / "labels.csv", "a,b", "1,2"), tmp / "x"][2],
                           {}, "no column names image files of the data; the columns are a, b, and the first row is"),
    "Latin-1": (lambda tmp: [flat(tmp / "x"), text(tmp / "x" / "labels.csv", "file,label", "000.png,café",
                                                   encoding="latin-1"), tmp / "x"][2], {}, "is not UTF-8"),
    "two files of one name": (lambda tmp: [flat(tmp / "x" / "a", 3), flat(tmp / "x" / "b", 3), text(
        tmp / "x" / "labels.csv", "file,label", "000.png,1"), tmp / "x"][3], {},
        "'000.png' in line 2 may be any of 'a/000.png', 'b/000.png'"),
    "fractions": (lambda tmp: [flat(tmp / "x"), text(tmp / "x" / "labels.csv", "file,score", *(
        f"{n:03d}.png,{n / 10}" for n in range(30))), tmp / "x"][2], {}, "have fractions, such as 0.1"),
    "unknown column": (listed(), {"label_column": "fine"}, "data.label_column = 'fine' is not a column; the columns "
                                                           "are file, label"),
    "labels for digits": (lambda tmp: "digits", {}, "data.labels = 'labels.csv' is for image files alone"),
    "labels for Parquet": (lambda tmp: parquet(tmp, [0, 1] * 9), {}, "has labels of its own; remove data.labels"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_a_bad_csv_file_gets_one_line(case, tmp_path):
    make, settings, expected = BAD_CSV[case]
    with pytest.raises(ValueError) as caught:
        read(make(tmp_path), **{"labels": "labels.csv", **settings})
    assert expected in str(caught.value) and "\n" not in str(caught.value) and str(caught.value).startswith("data.")


def test_files_without_a_row_repeated_rows_and_unread_metadata_are_noted(tmp_path):
    folder = listed("000.png,0")(tmp_path)
    picture(99).save(folder / "unlisted.png")
    assert read(folder, labels="labels.csv").notes == ("1 row of the labels repeats an earlier one",
                                                       "1 image file that no row lists is left out")
    pets = write_folder(tmp_path / "pets", ("train",)) / "train"
    text(pets / "metadata.csv", "file_name,label", "cat/0.png,x")
    (note,) = read(pets).notes
    assert note.startswith("metadata.csv is not read, because the images lie in class folders")


# -- brightness -------------------------------------------------------------------------------------------------------


def deep_folder(folder, bits=12):
    values = np.random.default_rng(1).integers(0, 2**bits, (2, 10, 8, 8)).astype(np.uint16)
    for label, name in enumerate("ab"):
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(values[label]):
            Image.fromarray(image).save(folder / name / f"{number}.png")
    return folder, values.reshape(20, 1, 8, 8)


def as_set(images) -> set[bytes]:
    return {image.tobytes() for image in images}


def every_image(splits) -> np.ndarray:
    return np.concatenate([part.images for part in (splits.train, splits.validation, splits.test)])


def test_twelve_bits_in_sixteen_are_noted_and_stretched_on_request(tmp_path):
    folder, values = deep_folder(tmp_path / "x")
    splits = read(folder)
    assert as_set(every_image(splits)) == as_set((values // 257).astype(np.uint8))
    assert splits.notes[0].startswith("the images are nearly black: the brightest pixel of all is 15 of 255")
    low, high = int(values.min()), int(values.max())
    stretched = np.rint((values - float(low)) * 255 / (high - low)).astype(np.uint8)
    splits = read(folder, stretch=True)
    assert as_set(every_image(splits)) == as_set(stretched) and splits.notes == ()
    window = np.rint((np.clip(values, 100, 4000) - 100.0) * 255 / 3900).astype(np.uint8)
    assert as_set(every_image(read(folder, stretch=(100, 4000)))) == as_set(window)
    assert read(folder, stretch=(0, 65535)).notes[0].startswith("the images are nearly black")
    grey = values[:, 0]
    for source in (arrays(tmp_path, X=grey, y=np.arange(20) % 2), parquet_of(tmp_path, grey)):
        assert as_set(every_image(read(source, stretch=True))) == as_set(stretched)
        assert as_set(every_image(read(source))) == as_set((values // 257).astype(np.uint8))
        assert read(source).notes[0].startswith("the images are nearly black")


def parquet_of(tmp, images):
    encoded = [png(Image.fromarray(image)) for image in images]
    pq.write_table(pa.table({"image": encoded, "label": [0, 1] * (len(images) // 2)}), tmp / "deep.parquet")
    return tmp / "deep.parquet"


def test_pixels_of_unknown_range_need_to_be_stretched_and_deep_pgm_does_not(tmp_path):
    values = np.random.default_rng(2).normal(size=(2, 10, 8, 8)).astype(np.float32)
    for label, name in enumerate("ab"):
        (tmp_path / "x" / name).mkdir(parents=True)
        (tmp_path / "y" / name).mkdir(parents=True)
        for number, image in enumerate(values[label]):
            Image.fromarray(image).save(tmp_path / "x" / name / f"{number}.tif")
            raw = (image * 100 + 2000).astype(">u2")
            (tmp_path / "y" / name / f"{number}.pgm").write_bytes(b"P5 8 8 4095\n" + raw.tobytes())
    with pytest.raises(ValueError, match=r"the range of its pixels is unknown; .* set data\.stretch = true"):
        read(tmp_path / "x")
    low, high = float(values.min()), float(values.max())
    expected = np.rint((values.reshape(20, 1, 8, 8) - low) * 255 / (high - low)).astype(np.uint8)
    assert as_set(every_image(read(tmp_path / "x", stretch=True))) == as_set(expected)
    pgm = every_image(read(tmp_path / "y"))  # of 12 bits, which its header says
    assert abs(pgm.mean() - 2000 * 255 / 4095) < 1


def test_stretching_counts_eight_bits_as_sixteen_beside_those_of_sixteen(tmp_path):
    folder, values = deep_folder(tmp_path / "x")
    shallow = np.zeros((8, 8), np.uint8)
    shallow[0, 0] = 16  # 4112 of 65535
    Image.fromarray(shallow).save(folder / "a" / "shallow.png")
    brightest = [image for image in every_image(read(folder, stretch=True)) if image[0, 0, 0] == 255]
    assert len(brightest) == 1 and brightest[0].sum() == 255 and values.max() < 4112


def test_nothing_to_stretch_is_a_mistake(tmp_path):
    with pytest.raises(ValueError, match=r"^data\.stretch = true finds nothing to stretch: every pixel is 7$"):
        read(arrays(tmp_path, X=np.full((30, 8, 8), 7, np.uint8), y=L), stretch=True)
    with pytest.raises(ValueError, match="needs low < high"):
        DataSettings(stretch=(5.0, 5.0))


# -- archives ---------------------------------------------------------------------------------------------------------


def zip_of(folder, path, top="", **members):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, f"{top}{file.relative_to(folder)}")
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tar_of(folder, path, mode="w", top="./photos"):
    with tarfile.open(path, mode) as archive:
        archive.add(folder, top)
    return path


def add(archive, name, content=b"", **changes):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in changes.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(content))


def same(one, other) -> bool:
    parts = [(getattr(one, name), getattr(other, name)) for name in ("train", "validation", "test")]
    return one.class_names == other.class_names and all(hash_images(part) == hash_images(like) for part, like in parts)


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "X.TAR.GZ", "x.tgz", "x.tar.bz2", "x.tar.xz"])
def test_an_archive_is_read_like_its_folder(name, tmp_path):
    folder = write_folder(tmp_path / "pets")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "._1.png").write_bytes(b"litter")
    mode = {"gz": "w:gz", "tgz": "w:gz", "bz2": "w:bz2", "xz": "w:xz"}.get(name.lower().rpartition(".")[2], "w")
    for top in ("photos", "."):
        path = zip_of(folder, tmp_path / name, f"{top}/") if name.endswith("zip") else tar_of(
            folder, tmp_path / name, mode, top)
        assert same(read(path), read(folder)), top
        assert same(read(path.as_uri()), read(folder)), top


def test_parquet_and_csv_labels_in_archives_and_an_archive_per_split(tmp_path):
    for split, seed in (("train", 0), ("test", 500)):
        write_parquet(tmp_path / "p" / f"{split}.parquet", [0, 1, 2] * 8, seed=seed)
    assert same(read(zip_of(tmp_path / "p", tmp_path / "p.zip", "data/")), read(tmp_path / "p"))
    folder = listed()(tmp_path)
    assert same(read(tar_of(folder, tmp_path / "l.tar"), labels="labels.csv"), read(folder, labels="labels.csv"))
    pets = write_folder(tmp_path / "pets")
    (tmp_path / "each").mkdir()
    zip_of(pets / "train", tmp_path / "each" / "train.zip", "train/")
    zip_of(pets / "test", tmp_path / "each" / "test.zip")
    assert same(read(tmp_path / "each"), read(pets))


def test_a_changed_archive_is_decoded_again_and_an_unchanged_one_not_even_opened(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "pets")
    first = read(zip_of(folder, tmp_path / "x.zip"))
    monkeypatch.setattr(archives, "opened", lambda _: pytest.fail("opened again"))
    assert same(read(tmp_path / "x.zip"), first)
    monkeypatch.undo()
    monkeypatch.setenv("KDSTUDY_CACHE", str(tmp_path / "cache"))
    Image.new("RGB", (8, 8)).save(folder / "test" / "cat" / "0.png")
    assert not same(read(zip_of(folder, tmp_path / "x.zip")), first)


def shards(folder, names, labels=lambda number: str(number % 3), count=12):
    folder.mkdir(parents=True, exist_ok=True)
    for shard, name in enumerate(names):
        with tarfile.open(folder / name, "w") as archive:
            for number in range(count):
                add(archive, f"{number:05d}.png", png(picture(100 * shard + number)))
                add(archive, f"{number:05d}.cls", labels(number).encode())
    return folder


def test_webdataset_shards(tmp_path):
    folder = shards(tmp_path / "w", ("pets-train-000.tar", "pets-train-001.tar", "pets-validation-000.tar"))
    splits = read(folder)
    assert all_counts(splits) == [[6, 6, 7], [4, 4, 4], [2, 2, 1]]
    assert (splits.validation.images[5] == np.asarray(picture(205)).transpose(2, 0, 1)).all()
    assert splits.validation.labels.tolist() == [0, 1, 2] * 4
    words = read(shards(tmp_path / "v", ("shard.tar",), lambda number: NAMES[number % 2] + "\n") / "shard.tar")
    assert words.class_names == NAMES[:2]
    unpacked = tmp_path / "u"
    with tarfile.open(tmp_path / "v" / "shard.tar") as archive:
        archive.extractall(unpacked, filter="data")
    assert same(read(unpacked), words)
    (unpacked / "00003.cls").unlink()
    with pytest.raises(ValueError, match=r"1 images of its train split have no \.cls file: '00003'"):
        read(unpacked)
    with pytest.raises(ValueError, match=r"has shards of test but none of train, such as train-0000\.tar"):
        read(shards(tmp_path / "t", ("test-0.tar", "test-1.tar")))


def test_several_archives_in_a_folder_are_parts_splits_or_classes(tmp_path):
    pets, parts = write_folder(tmp_path / "pets"), tmp_path / "parts"
    parts.mkdir()
    for number in range(2):
        with zipfile.ZipFile(parts / f"part{number}.zip", "w") as archive:
            for file in sorted((pets / "train").rglob("*.png"))[number::2]:
                archive.write(file, f"{file.relative_to(pets / 'train')}")
    splits = read(parts)
    assert same(splits, read(pets / "train"))
    assert splits.notes == ("'part0.zip', 'part1.zip' are read as one folder",)
    shutil.copy(parts / "part0.zip", parts / "part2.zip")
    with pytest.raises(ValueError, match=r"part0\.zip and part2\.zip both hold bird/0\.png; unpack them into folders"):
        read(parts)
    for name, archive in (("splits", "{}_images.zip"), ("kinds", "{}.zip")):
        (tmp_path / name).mkdir()
        for folder in ("train", "test") if name == "splits" else NAMES:
            zip_of(pets / ("" if name == "splits" else "train") / folder, tmp_path / name / archive.format(folder))
    assert same(read(tmp_path / "splits"), read(pets))
    assert same(read(tmp_path / "kinds"), read(pets / "train"))
    zip_of(pets / "train", tmp_path / "splits" / "more.zip")
    with pytest.raises(ValueError, match=r"more\.zip holds folders, but its name says no split, as those of other"):
        read(tmp_path / "splits")


def test_a_tar_that_lost_its_end_is_refused(tmp_path):
    path = tar_of(write_folder(tmp_path / "pets", ("train",)), tmp_path / "x.tar")
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    broken = bytearray(whole)
    broken[members[20].offset] ^= 1  # its header's check sum is wrong
    for content in (whole[:members[20].offset], bytes(broken)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"it ends early or is damaged after {members[19].name}$"):
            read(path)
    path.write_bytes(whole[:members[-1].offset_data + 512 * (-(-members[-1].size // 512)) + 512])  # one block of zeros
    assert len(every_image(read(path))) == 36


def test_hard_links_in_a_tar_are_files(tmp_path):
    folder = classes_of(tmp_path / "pets", dict.fromkeys(NAMES, 10))
    before = read(tar_of(folder, tmp_path / "x.tar"))
    os.link(folder / "cat" / "000.png", folder / "cat" / "linked.png")
    with tarfile.open(tar_of(folder, tmp_path / "y.tar")) as archive:
        assert any(member.islnk() for member in archive)
    assert len(every_image(before)) == 30 and len(every_image(read(tmp_path / "y.tar"))) == 31
    assert read(tmp_path / "y.tar").notes == ()


def test_compressed_archives_share_the_memory(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    for number, name in enumerate(NAMES):
        folder = classes_of(tmp_path / name, {name: 4})
        tar_of(folder, tmp_path / "x" / f"{number}.tgz", "w:gz", ".")
    size = len(gzip.decompress((tmp_path / "x" / "0.tgz").read_bytes()))
    monkeypatch.setattr(archives, "memory", lambda: 5 * size)  # of which they may take half
    with pytest.raises(ValueError, match=r"2\.tgz cannot be read .* more than the 0\.0 GiB that are left for it"):
        read(tmp_path / "x")
    monkeypatch.setattr(archives, "memory", lambda: 6 * size)
    assert len(every_image(read(tmp_path / "x"))) == 12


def test_two_images_of_one_key_are_refused(tmp_path):
    folder = shards(tmp_path / "w", ("train-0.tar",))
    with tarfile.open(folder / "train-0.tar", "a") as archive:
        add(archive, "00003.jpg", png(picture(1)))
    with pytest.raises(ValueError, match=r"00003\.jpg and 00003\.png are of one key; a sample has one image"):
        read(folder)


def test_archives_beside_images_are_noted_and_those_of_splits_refused(tmp_path):
    write_folder(tmp_path / "pets")
    shutil.copytree(tmp_path / "pets" / "train", tmp_path / "x" / "train")
    zip_of(tmp_path / "pets" / "test", tmp_path / "x" / "more.zip")
    assert read(tmp_path / "x").notes == ("1 archive beside the images is not read (first: more.zip)",)
    (tmp_path / "x" / "more.zip").rename(tmp_path / "x" / "test.zip")
    with pytest.raises(ValueError, match=r"test\.zip lies beside images that are not in an archive; unpack it, or"):
        read(tmp_path / "x")


def test_labels_beside_an_archive_must_be_in_it(tmp_path):
    zip_of(flat(tmp_path / "flat"), tmp_path / "train.zip")
    text(tmp_path / "train.csv", "file,label", "000.png,1")
    (tmp_path / "x").mkdir()
    for name in ("train.zip", "train.csv"):
        shutil.move(tmp_path / name, tmp_path / "x" / name)
    with pytest.raises(ValueError, match=r"^data\.labels = 'train\.csv' lies beside the archives in data\.source = .*; "
                                         r"unpack 'train\.zip', or put the file into it$"):
        read(tmp_path / "x", labels="train.csv")


def test_an_archive_from_a_stranger_leads_nowhere(tmp_path):
    folder = classes_of(tmp_path / "pets", dict.fromkeys(NAMES, 10))
    secret = tmp_path / "secret.png"
    picture(7).save(secret)
    path = tar_of(folder, tmp_path / "x.tar")
    with tarfile.open(path, "a") as archive:
        for name in ("../../evil.png", str(tmp_path / "evil.png"), "photos/cat/../../../evil.png", "a/" * 5000):
            add(archive, name, png(picture(8)))
        add(archive, "photos/cat/link.png", type=tarfile.SYMTYPE, linkname=str(secret))
        add(archive, "photos/cat/hard.png", type=tarfile.LNKTYPE, linkname="../secret.png")
        add(archive, "photos/cat/pipe.png", type=tarfile.FIFOTYPE)
    before = sorted(tmp_path.rglob("*"))
    splits = read(path)
    assert all_counts(splits) == [[7, 7, 7], [1, 1, 1], [2, 2, 2]]
    assert len(splits.notes) == 2 and splits.notes[0] == "3 of its members are links or devices, and are left out"
    assert splits.notes[1].startswith("4 of its members have names that lead out of it, and are left out")
    assert [path for path in sorted(tmp_path.rglob("*")) if "cache" not in path.parts] == before
    zipped = zip_of(folder, tmp_path / "x.zip", **{"../evil.png": png(picture(8))})
    with zipfile.ZipFile(zipped, "a") as archive:
        link = zipfile.ZipInfo("cat/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(secret))
    assert same(read(zipped), splits) and len(read(zipped).notes) == 2


def lying_zip(tmp):
    """A member that unpacks to 100 MB, but is said to have 1000 bytes."""
    with zipfile.ZipFile(tmp / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/0.png", bytes(10**8))
        archive.writestr("b/0.png", png(picture(1)))
    content = (tmp / "x.zip").read_bytes()
    assert content.count(struct.pack("<I", 10**8)) == 2
    (tmp / "x.zip").write_bytes(content.replace(struct.pack("<I", 10**8), struct.pack("<I", 1000)))
    return tmp / "x.zip"


def bomb(tmp):
    with zipfile.ZipFile(tmp / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(5):
            archive.writestr(f"a/{number}.png", bytes(30_000_000))
    return tmp / "x.zip"


def tar_bomb(tmp):
    with tarfile.open(tmp / "x.tar.gz", "w:gz") as archive:
        add(archive, "a/0.png", bytes(150_000_000))
    return tmp / "x.tar.gz"


def unusual(tmp):
    with zipfile.ZipFile(tmp / "x.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a/0.png", bytes(10**7))
    return tmp / "x.zip"


def circle(tmp):
    """A header whose negative size leads back to itself."""
    header = tarfile.TarInfo("a/0.png").tobuf()
    header = header[:124] + b"\xff" * 4 + struct.pack(">q", -512) + header[136:148] + b" " * 8 + header[156:]
    header = header[:148] + f"{sum(header):06o}\0 ".encode() + header[156:]
    (tmp / "x.tar").write_bytes(header + bytes(1024))
    return tmp / "x.tar"


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])
    return path


BAD_ARCHIVES = {
    "a size that is a lie": (lying_zip, "a/0.png cannot be decoded (Bad CRC-32 for file 'a/0.png')"),
    "a bomb": (bomb, "would unpack to 0.1 GiB, up to 0.0 GiB for one file, from 0.1 MiB, which images never do"),
    "a compressed bomb": (tar_bomb, "it unpacks to more than the 0.1 GiB that are left for it; unpack it yourself"),
    "a header that goes back": (circle, "x.tar cannot be read as an archive"),
    "a method that cannot be limited": (unusual, "'a/0.png' is compressed in an unusual way; zip it again"),
    "no zip": (lambda tmp: text(tmp / "x.zip", "PK"), "x.zip cannot be read as an archive, it may be incomplete"),
    "half a tar": (lambda tmp: cut(tar_of(write_folder(tmp / "pets"), tmp / "x.tar"), 30_000),
                   "x.tar cannot be read as an archive, it may be incomplete"),
    "half a compressed tar": (lambda tmp: cut(tar_of(write_folder(tmp / "pets"), tmp / "x.tgz", "w:gz"), 3000),
                              "x.tgz cannot be read as an archive, it may be incomplete"),
    "nothing in it": (lambda tmp: zip_of(tmp, tmp / "x.zip"), "holds no images"),
    "no images": (lambda tmp: zip_of(tmp, tmp / "x.zip", readme="x"), "holds no images: looked for train*.parquet"),
}


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_a_bad_archive_gets_one_line(case, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST_UNPACKED", 10**8)  # so that the bombs of this test are small
    make, expected = BAD_ARCHIVES[case]
    with pytest.raises(ValueError) as caught:
        read(make(tmp_path))
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_an_encrypted_archive_is_refused(tmp_path):
    path = zip_of(write_folder(tmp_path / "pets"), tmp_path / "x.zip")
    content = bytearray(path.read_bytes())
    place = content.find(b"PK\x01\x02")
    while place >= 0:
        content[place + 8] |= 1
        place = content.find(b"PK\x01\x02", place + 1)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="it is encrypted"):
        read(path)


def spoilt(content: bytes, random: np.random.Generator) -> bytes:
    """The same with a few bytes changed, and now and then the end cut off."""
    changed = bytearray(content)
    for place in random.integers(0, len(changed), random.choice([1, 3, 20])):
        changed[place] = random.integers(0, 256)
    return bytes(changed[:random.integers(1, len(changed))] if random.random() < 0.2 else changed)


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tgz", "shard.tar", "a.npz", "labels.csv"])
def test_damaged_bytes_are_read_or_refused_in_one_line(name, tmp_path):
    folder, settings = classes_of(tmp_path / "pets", dict.fromkeys(NAMES, 4)), {}
    if name == "labels.csv":
        source, settings = listed()(tmp_path), {"labels": name}
        path = source / name
    elif name == "shard.tar":
        path = source = shards(tmp_path, (name,)) / name
    elif name == "a.npz":
        path = source = arrays(tmp_path, X=U8, y=L)
    else:
        path = source = zip_of(folder, tmp_path / name) if name == "x.zip" else tar_of(
            folder, tmp_path / name, "w:gz" if name == "x.tgz" else "w")
    random, content = np.random.default_rng(0), path.read_bytes()
    for _ in range(25):
        path.write_bytes(spoilt(content, random))
        try:
            read(source, skip_unreadable=int(random.integers(0, 4)), **settings)
        except ValueError as error:
            assert str(error).startswith("data.") and "\n" not in str(error)


# -- the hub and object stores ----------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    served = Hub(tmp_path / "hub")
    monkeypatch.setenv("HF_ENDPOINT", served.url)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    yield served
    served.close()


def test_data_sets_of_the_hub_are_read_like_folders(hub, tmp_path):
    pets = hub.root / "me" / "pets"
    for split, seed in (("train", 0), ("test", 500)):
        write_parquet(pets / "data" / f"{split}-00000-of-00001.parquet", [0, 1, 2] * 8, seed=seed)
    (pets / ".gitattributes").write_text("x")
    (pets / "README.md").write_text("x")
    photos = write_folder(hub.root / "me" / "photos")
    shards(hub.root / "me" / "shards", ("train-0.tar", "test-0.tar"))
    for source, folder in (("me/pets", pets), ("me/pets@main", pets), ("me/pets/data", pets / "data"),
                           ("me/photos", photos), ("me/shards", hub.root / "me" / "shards")):
        assert same(read(f"hf://datasets/{source}"), read(folder)), source
    one = pets / "data" / "train-00000-of-00001.parquet"
    assert same(read("hf://datasets/me/pets/data/train-00000-of-00001.parquet"), read(one))
    asked = len(hub.asked)
    read("hf://datasets/me/pets")
    assert not any("/resolve/" in path for path, _ in hub.asked[asked:])  # nothing is downloaded twice
    hub.commit = "1" * 40
    write_parquet(pets / "data" / "test-00000-of-00001.parquet", [0, 1, 2] * 8, seed=600)
    assert same(read("hf://datasets/me/pets"), read(pets))


def test_a_file_that_the_network_does_not_give_counts_not_as_unreadable(hub, monkeypatch):
    write_folder(hub.root / "me" / "photos", ("train",))
    monkeypatch.setattr(Hub, "refused", ("train/cat/3.png",))
    with pytest.raises(ValueError, match=r"train/cat/3\.png cannot be read \(.*\); try again"):
        read("hf://datasets/me/photos", skip_unreadable=5)
    monkeypatch.undo()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    assert len(every_image(read("hf://datasets/me/photos", skip_unreadable=5))) == 36


@pytest.mark.parametrize(("source", "expected"), [
    ("hf://datasets/me/none", "cannot be opened: datasets/me/none (repository not found)"),
    ("hf://datasets/me/pets@other", "cannot be opened: datasets/me/pets@other (revision not found)"),
    ("hf://datasets/me/pets/none", "is neither a known name nor an existing file or folder"),
    ("hf://me/pets", "data sets of the hub are named hf://datasets/OWNER/NAME"),
    ("hf://datasets/me", "data sets of the hub are named hf://datasets/OWNER/NAME"),
])
def test_what_the_hub_does_not_have_is_one_line(hub, source, expected):
    write_parquet(hub.root / "me" / "pets" / "train.parquet", [0, 1] * 8)
    with pytest.raises(ValueError) as caught:
        read(source)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_hub_that_is_not_there_is_one_line(hub):
    hub.close()
    with pytest.raises(ValueError, match=r"^data\.source = 'hf://datasets/me/pets' cannot be opened: ") as caught:
        read("hf://datasets/me/pets")
    assert "\n" not in str(caught.value)


def test_a_strangers_study_may_not_ask_the_hub(hub):
    """It would be shown this machine's token."""
    config = StudyConfig(name="x", data={"source": "hf://datasets/me/pets"}, teacher={"model": "resnet18"},
                         student={"model": "resnet18"})
    with pytest.raises(UserError, match=r"^data\.source = 'hf://datasets/me/pets' is an address that them names"):
        functions_allowed(config, Named(), "them", trust=False, remedy="add --trust")
    own = Named()
    own.add({"data": {"source": "hf://datasets/me/pets"}})
    functions_allowed(config, own, "them", trust=False, remedy="add --trust")
    assert not hub.asked


def test_an_object_store_is_read_like_a_folder(tmp_path, monkeypatch):
    moto_server = pytest.importorskip("moto.server", reason="moto's server is not installed")
    import pyarrow.fs as pafs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host = "{}:{}".format(*server.get_host_and_port())
        store = pafs.S3FileSystem(endpoint_override=host, scheme="http", allow_bucket_creation=True)
        store.create_dir("data")
        (tmp_path / "local").mkdir()
        listed()(tmp_path / "local")
        zip_of(write_folder(tmp_path / "pets"), tmp_path / "local" / "pets.zip")
        shards(tmp_path / "local" / "w", ("train-0.tar", "test-0.tar"))
        pafs.copy_files(str(tmp_path / "local"), "data", destination_filesystem=store)
        for name, settings in (("x", {"labels": "labels.csv"}), ("pets.zip", {}), ("w", {})):
            uri = f"s3://data/{name}?endpoint_override={host}&scheme=http"
            assert same(read(uri, **settings), read(tmp_path / "local" / name, **settings)), name
    finally:
        server.stop()


# -- files that cannot be read ----------------------------------------------------------------------------------------


def broken_folder(tmp):
    folder = classes_of(tmp / "x", dict.fromkeys(NAMES, 10))
    (folder / "cat" / "003.png").write_bytes(b"no image")
    cut(folder / "dog" / "004.png", 90)
    return folder, ("cat/003.png", "dog/004.png")


def broken_parquet(tmp):
    images = [png(picture(index)) for index in range(30)]
    images[3], images[5] = b"no image", None
    pq.write_table(pa.table({"png": images, "label": list(L)}), tmp / "a.parquet")
    return tmp / "a.parquet", ("a.parquet, row 3", "a.parquet, row 5")


def broken_zip(tmp):
    folder, names = broken_folder(tmp)
    return zip_of(folder, tmp / "x.zip"), names


def broken_csv(tmp):
    folder = listed("nope.png,1")(tmp)
    (folder / "007.png").write_bytes(b"")
    return folder, ("007.png", "nope.png")


BROKEN = {"folder": (broken_folder, {}), "Parquet": (broken_parquet, {}), "zip": (broken_zip, {}),
          "CSV": (broken_csv, {"labels": "labels.csv"}), "stretched": (broken_folder, {"stretch": True})}


@pytest.mark.parametrize("case", BROKEN)
def test_a_few_unreadable_files_are_left_out_if_that_is_allowed(case, tmp_path):
    make, settings = BROKEN[case]
    source, names = make(tmp_path)
    with pytest.raises(ValueError, match=r"cannot be decoded .*; remove it .* or set data\.skip_unreadable"):
        read(source, **settings)
    with pytest.raises(ValueError, match=r"nor can 1 more, which is more than data\.skip_unreadable"):
        read(source, skip_unreadable=1, **settings)
    for splits in (read(source, skip_unreadable=2, **settings), read(source, skip_unreadable=2, **settings)):
        assert len(every_image(splits)) == (29 if case == "CSV" else 28)
        assert tuple(sorted(one.file for one in splits.unreadable)) == names
        assert all(one.reason for one in splits.unreadable)
        assert any(note.startswith("2 files that cannot be read are left out, as data.skip_unreadable = 2 allows")
                   for note in splits.notes)
    with pytest.raises(ValueError, match="cannot be decoded"):  # the cache has not made it forget
        read(source, **settings)


def test_a_class_whose_files_are_all_unreadable_is_a_mistake(tmp_path):
    folder = classes_of(tmp_path / "x", {"cat": 20, "dog": 1, "owl": 20})
    (folder / "dog" / "000.png").write_bytes(b"no image")
    assert read(folder, skip_unreadable=1).notes[-1] == "class 'dog' is left out, because no image has that label"
    with pytest.raises(ValueError, match="class 'dog' has no image in its train split"):
        read(folder, skip_unreadable=1, classes=("cat", "dog"))


# -- files as they lie around -----------------------------------------------------------------------------------------


def test_litter_links_nesting_and_upper_case(tmp_path):
    folder = classes_of(tmp_path / "x", dict.fromkeys(NAMES, 10), suffix="PNG")
    clean = read(folder)
    for name in (".DS_Store", "cat/Thumbs.db", "cat/desktop.ini", "cat/._000.PNG", "__MACOSX/cat/x.png",
                 "cat/@eaDir/000.PNG", ".ipynb_checkpoints/x.png"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(b"litter")
    assert same(read(folder), clean) and read(folder).notes == ()
    (folder / "dog" / "pups").mkdir()
    picture(77).save(folder / "dog" / "pups" / "deep.png")
    picture(78).save(tmp_path / "linked.png")
    (folder / "dog" / "link.png").symlink_to(tmp_path / "linked.png")
    (folder / "dog" / "dead.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "cat" / "notes.txt").write_text("x")
    (folder / "cat" / "phone.heic").write_text("x")
    splits = read(folder)
    assert np.sum(all_counts(splits), axis=0).tolist() == [10, 10, 12]
    assert splits.notes == ("1 link that leads nowhere is left out (first: dog/dead.png)",
                            "1 file among the images is of a kind that is not read (.heic; first: cat/phone.heic)")


def test_a_class_that_one_split_lacks_can_be_left_out_by_name(tmp_path):
    classes_of(tmp_path / "train", dict.fromkeys(NAMES, 10))
    classes_of(tmp_path / "test", dict.fromkeys((*NAMES, "wolf"), 4))
    with pytest.raises(ValueError, match=r"train and test differ: test adds 'wolf'; .* data\.classes$"):
        read(tmp_path)
    assert all_counts(read(tmp_path, classes=NAMES)) == [[9, 9, 9], [1, 1, 1], [4, 4, 4]]


# -- sizes, colours, frames -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sizes", "stored"), [
    ([(30, 20)], 20), ([(640, 480)], 224), ([(100, 90), (640, 480), (640, 480)], 224),
    ([(24, 20), (40, 48), (12, 9)], 20),
])
def test_sizes_that_differ_get_one_that_is_noted(tmp_path, sizes, stored):
    folder = classes_of(tmp_path / "x", {"a": 3, "b": 3})
    for index, path in enumerate(sorted(folder.rglob("*.png"))):
        picture(index, sizes[index % len(sizes)]).save(path)
    splits = read(folder)
    assert splits.train.images.shape[1:] == (3, stored, stored)
    (note,) = splits.notes
    assert f"they are stored at {stored}x{stored} pixels" in note and "data.stored_size sets another size" in note
    assert same(read(folder, stored_size=stored), splits) and not read(folder, stored_size=stored).notes
    assert not read(folder, image_size=16).notes


def rgba(image):
    image.putalpha(Image.fromarray(np.arange(96 * 64).reshape(64, 96).astype(np.uint8)))
    return image


PICTURES = {
    "transparency": (rgba, "png"), "a palette": (lambda image: image.convert("P"), "png"),
    "a transparent palette": (lambda image: rgba(image).convert("P"), "png"),
    "CMYK": (lambda image: image.convert("CMYK"), "jpg"), "an animation": (lambda image: image.convert("P"), "gif"),
    "one bit": (lambda image: image.convert("1"), "png"), "grey with transparency": (lambda image: rgba(image).convert(
        "LA"), "png"), "two pages": (lambda image: image, "tif"),
}


@pytest.mark.parametrize("case", PICTURES)
def test_pictures_of_every_kind_have_the_pixels_that_pillow_and_torchvision_give(case, tmp_path):
    make, suffix = PICTURES[case]
    folder = classes_of(tmp_path / "x", {"a": 6, "b": 6}, size=(96, 64))
    more = {"save_all": True, "append_images": [picture(5, (96, 64))]} if suffix in ("gif", "tif") else {}
    make(picture(4, (96, 64))).save(folder / "a" / f"odd.{suffix}", **more)
    with Image.open(folder / "a" / f"odd.{suffix}") as odd:
        resized = transforms.resize(odd, 16, InterpolationMode.BICUBIC)
        expected = np.asarray(transforms.center_crop(resized, [16, 16]).convert("RGB")).transpose(2, 0, 1)
    assert expected.tobytes() in as_set(every_image(read(folder, stored_size=16)))


def test_exif_orientation_is_noted_and_like_torchvision_not_applied(tmp_path):
    folder = classes_of(tmp_path / "x", {"a": 6, "b": 6}, size=(12, 8), suffix="jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(4, (12, 8)).save(folder / "a" / "turned.jpg", exif=exif, quality=100)
    splits = read(folder, stored_size=8)
    with Image.open(folder / "a" / "turned.jpg") as turned:
        expected = np.asarray(turned.crop((2, 0, 10, 8))).transpose(2, 0, 1)
    assert expected.tobytes() in as_set(every_image(splits))
    assert splits.notes == ("1 image asks to be turned when shown (EXIF orientation); like torchvision, kdstudy reads "
                            "images as they are stored",)


def test_damaged_exif_does_not_matter(tmp_path):
    folder = classes_of(tmp_path / "x", {"a": 6, "b": 6}, suffix="jpg")
    picture(4).save(folder / "a" / "odd.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xff" * 40)
    assert len(every_image(read(folder))) == 13 and read(folder).notes == ()


# Digests of train, validation and test as earlier versions read them: existing studies keep their fingerprints.
DIGESTS = {
    "folder": ("pets", {}, "df0c0265 f4ace209 dfcab441"), "flat": ("flat/train", {}, "bb260a90 98ca2369 f44e05d8"),
    "classes": ("flat/train", {"classes": 2}, "323d6b51 a6f89803 9a8da49f"),
    "limit": ("flat/train", {"limit": 9}, "bd59ace3 98ca2369 c0c7fb30"),
    "parquet": ("p", {}, "a002f997 90859caf c30f2aca"), "words": ("words", {}, "a002f997 90859caf c30f2aca"),
    "arrays": ("a.npz", {}, "1699fa88 2d461f68 eb88f444"),
    "a hole": ("hole.npz", {"classes": 2}, "fdd2bacd 9187cf6d 17bf8326"),
    "16 bits": ("deep", {}, "bb182f96 7cb71e85 54c8f92d"), "digits": ("digits", {}, "a1158a4c e529f9af c6a36097"),
}


@pytest.mark.parametrize("case", DIGESTS)
def test_images_that_were_read_before_are_read_as_before(case, tmp_path):
    source, settings, expected = DIGESTS[case]
    write_folder(tmp_path / "pets")
    write_folder(tmp_path / "flat", ("train",), per_class=20)
    for split, seed in (("train", 0), ("test", 500)):
        write_parquet(tmp_path / "p" / f"{split}.parquet", [0, 1, 2] * 8, seed=seed, metadata=described(NAMES))
        write_parquet(tmp_path / "words" / f"{split}.parquet", list(NAMES) * 8, seed=seed)
    grey = np.random.default_rng(0).integers(0, 256, (30, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", images=grey, labels=np.arange(30) % 3)
    grey = np.random.default_rng(0).integers(0, 256, (40, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "hole.npz", images=grey, labels=np.array([0, 1, 2, 4])[np.arange(40) % 4])
    for name in "ab":
        (tmp_path / "deep" / name).mkdir(parents=True)
        for number in range(10):
            pixels = np.random.default_rng(number).integers(0, 65536, (8, 8)).astype(np.uint16)
            Image.fromarray(pixels).save(tmp_path / "deep" / name / f"{number}.png")
    splits = read(source if source == "digits" else tmp_path / source, **settings)
    assert " ".join(hash_images(getattr(splits, name))[:8] for name in ("train", "validation", "test")) == expected
    assert splits.notes == (("class '3' is left out, because no image has that label",) if case == "a hole" else ())


# -- what the user is told --------------------------------------------------------------------------------------------

SMALL = ("teacher.model=resnet18", "student.model=resnet18", "data.student_images=1.0", "teacher.args={}",
         "student.args={}", "teacher.image_size=32", "student.image_size=32")


def test_plan_shows_the_notes(tmp_path):
    folder, _ = broken_folder(tmp_path)
    assignments = (*SMALL, f"data.source={folder}", "data.skip_unreadable=5")
    code, out, err = here("plan", "digits", *(word for one in assignments for word in ("--set", one)),
                          "--dir", str(tmp_path / "study"))
    assert code == 0, err
    assert ("note: 2 files that cannot be read are left out, as data.skip_unreadable = 5 allows (first: "
            "cat/003.png)\n") in out
    assert not (tmp_path / "study").exists()


def test_a_study_keeps_the_notes_and_names_the_unreadable_files(tmp_path):
    folder, _ = broken_folder(tmp_path)
    assignments = (*SMALL, f"data.source={folder}", "data.skip_unreadable=5")
    said = []
    study = Study(load_study("digits", assignments), Storage.of(tmp_path / "study"))
    study.begin(said.append)
    assert said[0].startswith("2 files that cannot be read are left out")
    assert said[1] == f"{tmp_path}/study/unreadable.csv names the files that were left out, and why"
    assert read_json(tmp_path / "study" / "stages.json")["data"]["notes"] == said[:1]
    with open(tmp_path / "study" / "unreadable.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["file", "reason"] and [row[0] for row in rows] == ["cat/003.png", "dog/004.png"]
    assert rows[0][1] == "it is not an image" and rows[1][1]
    check(tmp_path / "study", {})
    for name in ("cat/003.png", "dog/004.png"):
        picture(999).save(folder / name)
    said.clear()
    Study(load_study("digits", assignments), Storage.of(tmp_path / "study")).begin(said.append)
    assert said == [] and (tmp_path / "study" / "unreadable.csv").read_text() == "file,reason\n"


def test_the_reports_scope_says_what_the_notes_say(synthetic_study, tmp_path):
    folder = shutil.copytree(synthetic_study, tmp_path / "study")
    description = read_json(folder / "stages.json")
    description["data"]["notes"] = ["the test split is left out", "2 files of <script>alert(1)</script> are left out"]
    write_json(folder / "stages.json", description)
    code, _, err = here("report", str(folder))
    assert code == 0, err
    sentence = "The test split is left out. 2 files of &lt;script>alert(1)&lt;/script> are left out."
    assert sentence in (folder / "results" / "results.md").read_text()
    page = (folder / "results" / "report.html").read_text()
    assert sentence.replace(">", "&gt;") in page
    description["data"]["notes"] = ["a\nb"]
    write_json(folder / "stages.json", description)
    code, _, err = here("report", str(folder))
    assert code == 2 and "stages.json is damaged" in err


def test_names_that_cannot_be_printed_do_no_harm(tmp_path):
    folder = classes_of(tmp_path / "x", dict.fromkeys(NAMES, 10))
    for name in (b"a\nb.png", b"\xff.png"):
        with open(os.path.join(os.fsencode(folder), b"cat", name), "wb") as file:
            file.write(b"no image")
    splits = read(folder, skip_unreadable=2)
    assert {one.file for one in splits.unreadable} == {"cat/a?b.png", "cat/?.png"}
    assert all(note.isprintable() for note in splits.notes)
