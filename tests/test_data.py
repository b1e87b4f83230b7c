import csv
import io
import json
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from faceprior.errors import DataError
from faceprior.training import shards
from faceprior.training.shards import MANIFEST, PackedFaces, pack
from tiny_faces import smooth_picture, write_faces


def save(folder, name, picture, **options):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(folder / name, **options)


def manifest_of(folder):
    return json.loads((folder / MANIFEST).read_text("utf-8"))


def write_tar(path, pictures):
    with tarfile.open(path, "w") as tar:
        for name, content in pictures.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def encoded(picture, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind)
    return buffer.getvalue()


def test_packed_pixels_are_the_pictures_own(tmp_path):
    pictures = {f"{i:02d}.png": smooth_picture(i) for i in range(9)}
    for name, picture in pictures.items():
        save(tmp_path / "in", name, picture)
    report = pack([tmp_path / "in"], tmp_path / "out", size=32, held_out=0)
    faces = PackedFaces(tmp_path / "out", "train")
    assert report.faces == {"train": 9}
    assert report.problems == []
    for i, face in enumerate(faces.faces):
        assert np.array_equal(faces.pixels([i])[0].permute(1, 2, 0).numpy(), pictures[face.name])


def test_a_packed_set_is_one_array_that_numpy_opens(tmp_path):
    for i in range(3):
        save(tmp_path / "in", f"{i}.png", smooth_picture(i))
    pack([tmp_path / "in"], tmp_path / "out", size=32, held_out=0)
    array = np.load(tmp_path / "out" / "faces.npy", mmap_mode="r")
    assert np.array_equal(array, np.stack([smooth_picture(i) for i in range(3)]))


def test_faces_are_read_in_any_order(packed):
    faces = PackedFaces(packed, "train")
    array = np.load(packed / "faces.npy")
    shuffled = [5, 0, 7, 2, 2]
    assert np.array_equal(faces.pixels(shuffled).permute(0, 2, 3, 1).numpy(), array[shuffled])


@pytest.mark.parametrize(("held_out", "expected"), [(0.02, {"train": 4, "val": 1}), (0, {"train": 5})])
def test_of_a_small_set_one_face_is_held_out(tmp_path, held_out, expected):
    for i in range(5):
        save(tmp_path / "in", f"{i}.png", smooth_picture(i))
    assert pack([tmp_path / "in"], tmp_path / "out", size=32, held_out=held_out).faces == expected


def test_a_single_face_is_for_training(tmp_path):
    save(tmp_path / "in", "0.png", smooth_picture(0))
    assert pack([tmp_path / "in"], tmp_path / "out", size=32).faces == {"train": 1}


def test_batches_are_floats_in_the_models_range(tmp_path):
    save(tmp_path / "in", "a.png", np.full((32, 32, 3), (0, 255, 51), np.uint8))
    pack([tmp_path / "in"], tmp_path / "out", size=32, held_out=0)
    batch = PackedFaces(tmp_path / "out", "train").batch([0, 0])
    assert batch.shape == (2, 3, 32, 32)
    assert batch.dtype == torch.float32
    assert torch.allclose(batch[0, :, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))


def test_pictures_of_every_kind_become_square_rgb(tmp_path):
    folder = tmp_path / "in"
    save(folder, "grey.png", np.full((40, 40), 100, np.uint8))
    save(folder, "alpha.png", np.dstack([np.full((40, 40, 3), 50, np.uint8), np.zeros((40, 40), np.uint8)]))
    save(folder, "deep.png", np.full((40, 40), 32896, np.uint16))
    oblong = np.zeros((40, 80, 3), np.uint8)
    oblong[:, 20:60] = 200
    save(folder, "oblong.png", oblong)
    save(folder / "deeper", "photo.jpg", smooth_picture(0, 64), quality=95)
    assert pack([folder], tmp_path / "out", size=32, held_out=0).problems == []
    faces = PackedFaces(tmp_path / "out", "train")
    pixels = {face.name: faces.pixels([i])[0] for i, face in enumerate(faces.faces)}
    assert set(pixels) == {"grey.png", "alpha.png", "deep.png", "oblong.png", "deeper/photo.jpg"}
    assert pixels["grey.png"].unique().tolist() == [100]
    assert pixels["alpha.png"].unique().tolist() == [255]
    assert pixels["deep.png"].unique().tolist() == [128]
    assert pixels["oblong.png"].unique().tolist() == [200]


def test_a_broken_picture_is_named_and_skipped(tmp_path):
    save(tmp_path / "in", "good.png", smooth_picture(0))
    (tmp_path / "in" / "bad.png").write_bytes(b"not a picture")
    cut = encoded(smooth_picture(1))
    (tmp_path / "in" / "cut.png").write_bytes(cut[: len(cut) // 2])
    write_tar(tmp_path / "in" / "train-0.tar", {"fine.png": encoded(smooth_picture(2)), "torn.png": cut[:300]})
    (tmp_path / "in" / "train-1.tar").write_bytes(b"no tar at all" * 100)
    report = pack([tmp_path / "in"], tmp_path / "out", size=32, held_out=0)
    assert report.faces == {"train": 2}
    assert len(report.problems) == 4
    for name in ("bad.png", "cut.png", "torn.png", "train-1.tar"):
        assert sum(name in problem for problem in report.problems) == 1


def test_a_tar_that_is_cut_short_keeps_the_faces_before_the_cut(tmp_path):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "train-0.tar"
    write_tar(path, {f"{i}.png": encoded(smooth_picture(i)) for i in range(4)})
    path.write_bytes(path.read_bytes()[: 512 * 9])
    report = pack([tmp_path / "in"], tmp_path / "out", size=32, held_out=0)
    assert 1 <= report.faces["train"] < 4
    assert len(report.problems) == 1
    assert str(path) in report.problems[0]


def test_the_split_survives_additions(tmp_path):
    def split_of(count, output):
        for i in range(count):
            save(tmp_path / "in", f"face-{i:03d}.png", np.full((8, 8, 3), i, np.uint8))
        pack([tmp_path / "in"], output, size=8, held_out=0.3)
        return {face["name"]: face["split"] for face in manifest_of(output)["faces"]}

    before, after = split_of(40, tmp_path / "a"), split_of(60, tmp_path / "b")
    assert {name: after[name] for name in before} == before
    assert 0.1 < sum(split == "val" for split in after.values()) / 60 < 0.5


def test_tar_shards_with_an_index_keep_their_split_and_their_terms(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_tar(folder / "train-000.tar", {f"a-{i}.webp": encoded(smooth_picture(i), "WEBP") for i in range(3)})
    write_tar(folder / "val.tar", {"a-0.webp": encoded(smooth_picture(9), "WEBP"), "notes.txt": b"hello"})
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["shard", "file", "source", "terms", "licence", "original"])
        writer.writerow(["train-000.tar", "a-0.webp", "congress", "open", "public domain", "x.jpg"])
        writer.writerow(["train-000.tar", "a-1.webp", "utk", "research", "non-commercial", "y.jpg"])
        writer.writerow(["train-000.tar", "a-2.webp", "", "", "", ""])
        writer.writerow(["val.tar", "a-0.webp", "mep", "open", "© European Union", "z.jpg"])
    report = pack([folder], tmp_path / "out", size=32)
    rows = {
        (r["split"], r["name"]): (r["source"], r["terms"], r["licence"])
        for r in manifest_of(tmp_path / "out")["faces"]
    }
    assert report.faces == {"train": 3, "val": 1}
    assert rows == {
        ("train", "a-0.webp"): ("congress", "open", "public domain"),
        ("train", "a-1.webp"): ("utk", "research", "non-commercial"),
        ("train", "a-2.webp"): ("in", "unknown", "unknown"),
        ("val", "a-0.webp"): ("mep", "open", "© European Union"),
    }
    assert len(PackedFaces(tmp_path / "out", "val")) == 1


def test_further_columns_of_the_index_become_labels(tmp_path):
    [folder, _] = write_faces(tmp_path / "in")
    (folder / "index.csv").write_text("file,source,original,age\nportraits-000.png,utk,a_b.jpg,\n", encoding="utf-8")
    pack([folder], tmp_path / "out", size=32, held_out=0)
    first, second, *_ = PackedFaces(tmp_path / "out", "train").faces
    assert (first.source, first.labels) == ("utk", {"original": "a_b.jpg"})
    assert second.labels == {}


def test_the_terms_filter_keeps_only_those_faces(tmp_path):
    pack(write_faces(tmp_path / "in"), tmp_path / "out", size=32, held_out=0)
    assert len(PackedFaces(tmp_path / "out", "train")) == 20
    assert len(PackedFaces(tmp_path / "out", "train", [])) == 20
    assert {face.terms for face in PackedFaces(tmp_path / "out", "train", ["open"]).faces} == {"open"}
    assert len(PackedFaces(tmp_path / "out", "train", ["open", "research"])) == 20
    with pytest.raises(DataError, match="no face of split 'train' and terms"):
        PackedFaces(tmp_path / "out", "train", ["unknown"])


def test_sources_are_balanced_by_the_exponent(tmp_path):
    pack(write_faces(tmp_path / "in"), tmp_path / "out", size=32, held_out=0)
    faces = PackedFaces(tmp_path / "out", "train")
    portraits = torch.tensor([face.source == "portraits" for face in faces.faces])
    for exponent, share in ((1.0, 12 / 20), (0.0, 0.5), (0.5, 12**0.5 / (12**0.5 + 8**0.5))):
        weights = faces.balanced_weights(exponent)
        assert weights.sum().item() == pytest.approx(1)
        assert weights[portraits].sum().item() == pytest.approx(share)


def test_packing_refuses_to_overwrite(tmp_path):
    folders = write_faces(tmp_path / "in")
    pack(folders, tmp_path / "out", size=8)
    before = (tmp_path / "out" / MANIFEST).read_bytes()
    with pytest.raises(DataError, match=r"manifest\.json exists"):
        pack(folders, tmp_path / "out", size=16)
    assert (tmp_path / "out" / MANIFEST).read_bytes() == before


def test_packing_refuses_what_holds_no_face(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no face was found in .*empty"):
        pack([tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(DataError, match="nowhere is not a folder"):
        pack([tmp_path / "nowhere"], tmp_path / "out")


def test_an_index_without_its_columns_is_named(tmp_path):
    save(tmp_path / "in", "a.png", smooth_picture(0))
    (tmp_path / "in" / "index.csv").write_text("name,source\na.png,x\n")
    with pytest.raises(DataError, match=r"index\.csv has no column 'file'"):
        pack([tmp_path / "in"], tmp_path / "out")


@pytest.fixture
def packed(tmp_path):
    pack(write_faces(tmp_path / "in"), tmp_path / "out", size=32, held_out=0)
    return tmp_path / "out"


def test_a_missing_array_is_named(packed):
    (packed / "faces.npy").unlink()
    with pytest.raises(DataError, match=r"faces\.npy cannot be mapped"):
        PackedFaces(packed, "train")


def test_a_short_array_is_named(packed):
    path = packed / "faces.npy"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"faces\.npy cannot be mapped"):
        PackedFaces(packed, "train")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"size": 32', '"size": "big"'),
        lambda text: text.replace('"size": 32, ', ""),
        lambda text: text.replace('"split"', '"part"'),
    ],
)
def test_a_damaged_manifest_is_named(packed, damage):
    path = packed / MANIFEST
    path.write_text(damage(path.read_text("utf-8")), "utf-8")
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        PackedFaces(packed, "train")


def test_a_manifest_that_is_not_text_is_named(packed):
    (packed / MANIFEST).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        PackedFaces(packed, "train")


def test_a_manifest_of_another_format_is_refused(packed):
    path = packed / MANIFEST
    path.write_text(path.read_text("utf-8").replace(shards.FORMAT, "faceprior-shards/9"), "utf-8")
    with pytest.raises(DataError, match="format 'faceprior-shards/9'"):
        PackedFaces(packed, "train")


def test_a_folder_without_a_manifest_is_told_how_to_get_one(tmp_path):
    with pytest.raises(DataError, match="faceprior data pack"):
        PackedFaces(tmp_path, "train")


def test_faces_are_kept_by_the_least_value_of_a_label(tmp_path):
    folder = tmp_path / "faces"
    folder.mkdir()
    rows = ["file,source,terms,licence,sharpness"]
    for number, sharpness in enumerate(("0.05", "0.07", "0.2")):
        Image.fromarray(smooth_picture(number)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,made,open,none,{sharpness}")
    (folder / "index.csv").write_text("\n".join(rows) + "\n")
    pack([folder], tmp_path / "packed", size=32, held_out=0)
    kept = PackedFaces(tmp_path / "packed", "train", at_least={"sharpness": 0.07})
    assert [face.name for face in kept.faces] == ["1.png", "2.png"]
    with pytest.raises(DataError, match=r"holds no face.*sharpness"):
        PackedFaces(tmp_path / "packed", "train", at_least={"sharpness": 1.0})
    with pytest.raises(DataError, match=r"0\.png has no number 'size'"):
        PackedFaces(tmp_path / "packed", "train", at_least={"size": 1.0})


def test_faces_go_to_other_processes_as_names_of_files(tmp_path):
    pack(write_faces(tmp_path / "pictures"), tmp_path / "packed", size=32)
    faces = PackedFaces(tmp_path / "packed", "train")
    pickled = pickle.dumps(faces)
    assert len(pickled) < 3 * 32 * 32 * len(faces) / 2
    assert torch.equal(pickle.loads(pickled).pixels([1, 0]), faces.pixels([1, 0]))  # noqa: S301 - our own
