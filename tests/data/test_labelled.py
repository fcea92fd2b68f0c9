import numpy as np
import pytest

from adder.data import LabelledOptions, labelled_form, read_labelled
from adder.errors import AdderError, UsageError

from .sources import tone, tones, write_files, write_images, write_series, write_tar


@pytest.fixture
def sources(tmp_path):
    return {
        "images": write_images(tmp_path / "images"),
        "folder": write_files(tmp_path / "folder", tones()),
        "tar": write_tar(tmp_path / "x.tar", tones()),
        "npz": write_series(tmp_path / "x.npz"),
    }


def test_each_form_is_known_by_its_files(tmp_path, sources):
    forms = {name: labelled_form(str(path)) for name, path in sources.items()}
    assert forms == {"images": "idx", "folder": "wav", "tar": "wav", "npz": "npz"}
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").write_text("a text")
    for other in (None, "-", "", "nowhere", str(tmp_path / "text"), str(tmp_path / "text/a.txt")):
        assert labelled_form(other) is None


def test_images_are_pixel_sequences(sources):
    data = read_labelled(str(sources["images"]))
    assert data.labels == ("0", "1", "2")
    batch = data.train.batch(np.array([0, 1]))
    assert batch.inputs.shape == (2, 12, 1)
    assert batch.inputs[:, 0, 0].tolist() == pytest.approx([0.0, 100 / 255])
    assert len(data.test) == 4
    tokens = read_labelled(str(sources["images"]), LabelledOptions(tokens=True))
    assert (tokens.vocabulary, tokens.train.tokens) == (256, True)


def test_sounds_and_series(sources):
    options = LabelledOptions(test_files="*_0.wav")
    folder, tar = (read_labelled(str(sources[name]), options) for name in ("folder", "tar"))
    assert folder.labels == ("high", "low")
    assert (folder.sampling_rate, len(folder.train), len(folder.test)) == (8000.0, 10, 2)
    assert folder.sha256 == tar.sha256
    series = read_labelled(str(sources["npz"]))
    assert (series.labels, series.train.channels) == (("down", "up"), 2)


def test_any_change_changes_the_hash(sources):
    options = LabelledOptions(test_files="*_0.wav")
    before = read_labelled(str(sources["folder"]), options).sha256
    assert read_labelled(str(sources["folder"]), LabelledOptions()).sha256 != before
    write_files(sources["folder"], {"low_5.wav": tone("high", 5)})
    assert read_labelled(str(sources["folder"]), options).sha256 != before


def test_numbers_are_classes_in_their_order(tmp_path):
    write_files(tmp_path, {f"{n}_a.wav": tone("", 0) for n in (10, 9, 2)})
    assert read_labelled(str(tmp_path)).labels == ("2", "9", "10")
    write_files(tmp_path, {"x_a.wav": tone("", 0)})
    assert read_labelled(str(tmp_path)).labels == ("10", "2", "9", "x")


def test_classes_of_a_model_number_the_labels(sources):
    data = read_labelled(str(sources["folder"]), labels=("no", "low", "high"))
    assert set(data.train.labels.tolist()) == {1, 2}
    with pytest.raises(UsageError, match="has the label high, and the classes are low, mid"):
        read_labelled(str(sources["folder"]), labels=("low", "mid"))


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("images", {"test_files": "*"}, "--test-files is for wav files, and .* holds idx files"),
        ("npz", {"mix": True}, "--mix is for wav files, and .* holds npz files"),
        ("tar", {"tokens": True}, "--tokens is for idx and .npz files, and .* holds wav files"),
        ("npz", {"tokens": True}, "x_train cannot be read as tokens"),
    ],
)
def test_options_of_another_form_are_refused(sources, source, options, message):
    with pytest.raises(UsageError, match=message):
        read_labelled(str(sources[source]), LabelledOptions(**options))


def test_what_holds_no_labelled_sequences(tmp_path):
    with pytest.raises(UsageError, match="there is no file or folder nowhere"):
        read_labelled("nowhere")
    with pytest.raises(UsageError, match="holds no labelled sequences: give a folder of idx files"):
        read_labelled(str(tmp_path))


def test_a_folder_that_cannot_be_looked_into(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(AdderError, match=f"cannot read {tmp_path}: Permission denied"):
        read_labelled(str(tmp_path))


def test_one_class_alone_is_refused(tmp_path):
    write_files(tmp_path, {f"low_{i}.wav": tone("low", i) for i in range(3)})
    with pytest.raises(UsageError, match="has one class only, low"):
        read_labelled(str(tmp_path))


def test_a_test_label_that_was_never_trained_is_refused(tmp_path):
    path = write_series(tmp_path / "x.npz", y_test=["up", "down", "up", "odd", "up", "down"])
    with pytest.raises(UsageError, match="has in its test part the label odd"):
        read_labelled(str(path))
