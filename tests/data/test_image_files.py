"""Kinds of image files: decoded as a viewer shows them, or named."""

import struct
import zlib

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageOps

from tfgpu.data.file_tree import Remarks
from tfgpu.data.image_files import ALPHA, FRAMES, read_headers, read_image
from tfgpu.errors import DataError

RANDOM = np.random.RandomState(0)
ORIENTATION = 0x0112

# Four corners of their own colours, in blocks so that lossy formats keep them apart.
CORNERS = np.zeros((32, 48, 3), np.uint8)
CORNERS[:16, :24], CORNERS[:16, 24:] = (250, 0, 0), (0, 250, 0)
CORNERS[16:, :24], CORNERS[16:, 24:] = (0, 0, 250), (250, 250, 250)


def read(path, channels=3):
    """The image, after its header was found to say the same of it."""
    image = read_image(str(path), channels=channels)
    (header,) = read_headers([str(path)])
    assert header.size == image.shape[:2]
    return image


def corner_colours(image):
    return np.array([image[4, 4], image[4, -5], image[-5, 4], image[-5, -5]]).astype(int)


def exif(turn):
    found = Image.Exif()
    found[ORIENTATION] = turn
    return found


# ---- formats -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "tolerance"),
    [
        ("a.PNG", "PNG", 0),
        ("a.tif", "TIFF", 0),
        ("a.TIFF", "TIFF", 0),
        ("a.ppm", "PPM", 0),
        ("a.bmp", "BMP", 0),
        ("a.jfif", "JPEG", 30),
        ("a.webp", "WEBP", 30),
        ("a.jp2", "JPEG2000", 30),
        ("a.avif", "AVIF", 30),
        ("a.heic", "HEIF", 30),
        ("wrong.png", "JPEG", 30),  # What a file is, its content says.
        ("wrong.jpg", "HEIF", 30),
    ],
)
def test_formats(tmp_path, name, kind, tolerance):
    if kind == "HEIF":
        pillow_heif.register_heif_opener()
    Image.fromarray(CORNERS).save(tmp_path / name, kind)
    image = read(tmp_path / name)
    assert image.dtype == np.uint8
    apart = np.abs(corner_colours(image) - corner_colours(CORNERS))
    assert apart.max() <= tolerance


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_turns(tmp_path, kind, turn):
    # EXIF 2.32, 4.6.4: where the first row and the first column of the stored pixels belong.
    stored = {
        1: CORNERS,
        2: CORNERS[:, ::-1],
        3: CORNERS[::-1, ::-1],
        4: CORNERS[::-1],
        5: CORNERS.transpose(1, 0, 2),
        6: np.rot90(CORNERS),
        7: CORNERS[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(CORNERS, -1),
    }[turn]
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a", kind, exif=exif(turn))
    image = read(tmp_path / "a")
    assert image.shape == CORNERS.shape
    assert np.abs(corner_colours(image) - corner_colours(CORNERS)).max() <= 30


# Pillow warns of it; a command keeps that to itself.
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_exif_that_cannot_be_read_is_no_reason_to_refuse(tmp_path):
    broken = b"Exif\0\0II*\0\xff\xff\xff\xff"
    Image.fromarray(CORNERS).save(tmp_path / "a.jpg", exif=broken)
    assert read(tmp_path / "a.jpg").shape == CORNERS.shape


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP", "AVIF", "MPO"])
def test_of_several_frames_the_first(tmp_path, kind):
    first, second = Image.fromarray(CORNERS), Image.fromarray(255 - CORNERS)
    first.save(tmp_path / "a", kind, save_all=True, append_images=[second])
    remarks = Remarks()
    image = read_image(str(tmp_path / "a"), channels=3, remarks=remarks)
    assert np.abs(corner_colours(image) - corner_colours(CORNERS)).max() <= 30
    # The other pictures of an MPO are previews of the first.
    assert remarks.counts == ({} if kind == "MPO" else {FRAMES: 1})


# ---- values --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bits_of_grey(tmp_path, name):
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    assert read(tmp_path / name, channels=1)[..., 0].tolist() == [[0, 0, 1, 128, 255]]
    assert read(tmp_path / name)[0, 3].tolist() == [128, 128, 128]


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


@pytest.mark.parametrize(("colour_type", "samples"), [(2, 3), (4, 2), (6, 4)])
def test_16_bits_of_colour_and_alpha(tmp_path, colour_type, samples):
    pixel = struct.pack(f">{samples}H", *(256 * (10 + 20 * i) + 99 for i in range(samples)))
    head = struct.pack(">IIBBBBB", 1, 1, 16, colour_type, 0, 0, 0)  # PNG, 11.2.2
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" + pixel))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IEND", b""))
    expected = [10, 10, 10] if samples == 2 else [10, 30, 50]
    assert read(tmp_path / "a.png")[0, 0].tolist() == expected


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_of_no_known_range_are_refused(tmp_path, dtype):
    Image.fromarray(np.ones((2, 2), dtype)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif has .* which may mean anything"):
        read_image(str(tmp_path / "a.tif"), channels=3)


def test_cmyk(tmp_path):
    cmyk = Image.fromarray(CORNERS).convert("CMYK")
    cmyk.save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as stored:
        assert stored.mode == "CMYK"
    apart = np.abs(corner_colours(read(tmp_path / "a.jpg")) - corner_colours(CORNERS))
    assert apart.max() <= 20


def test_ycck(tmp_path):
    """Adobe's JPEG of four channels whose first three are stored as brightness and colour."""
    path = tmp_path / "a.jpg"
    *ink, black = Image.fromarray(CORNERS).convert("CMYK").split()
    # Adobe stores 255 - CMYK, and YCCK is that of RGB = 255 - CMY: here of the ink itself.
    stored = [*Image.merge("RGB", ink).convert("YCbCr").split(), ImageOps.invert(black)]
    # Pillow writes 255 minus what it is given.
    Image.merge("CMYK", [ImageOps.invert(band) for band in stored]).save(
        path, quality=95, subsampling=0
    )
    content = bytearray(path.read_bytes())
    at = content.index(b"Adobe")
    assert content[at + 11] == 0  # The transform, of Adobe's technical note 5116: 2 is YCCK.
    content[at + 11] = 2
    path.write_bytes(content)
    apart = np.abs(corner_colours(read(path)) - corner_colours(CORNERS))
    assert apart.max() <= 20


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_dropped_and_counted(tmp_path, mode):
    solid = Image.fromarray(CORNERS)
    if mode == "P":
        solid.quantize(8).save(tmp_path / "a.png", transparency=bytes([0, 100, 255]))
    else:
        image = solid.convert(mode)
        image.putalpha(7)
        image.save(tmp_path / "a.png")
    remarks = Remarks()
    found = read_image(str(tmp_path / "a.png"), channels=3, remarks=remarks)
    plain = np.asarray(solid.convert("L").convert("RGB")) if mode == "LA" else CORNERS
    np.testing.assert_array_equal(found, plain)
    assert remarks.counts == {ALPHA: 1}


def test_one_bit(tmp_path):
    Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1").save(tmp_path / "a.png")
    assert read(tmp_path / "a.png", channels=1)[..., 0].tolist() == [[0, 255]]


# ---- what is no image ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000"])
def test_a_file_that_ends_too_early_is_found_before_any_is_decoded(tmp_path, kind):
    noise = Image.fromarray(RANDOM.randint(0, 256, (40, 40, 3), np.uint8))
    noise.save(tmp_path / "a", kind)
    read_headers([str(tmp_path / "a")])
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content[: len(content) * 3 // 5])
    with pytest.raises(DataError, match=r"/a (cannot be read|is not an .*image)"):
        read_headers([str(tmp_path / "a")])


def test_what_stands_behind_a_jpeg_does_not_matter(tmp_path):
    Image.fromarray(CORNERS).save(tmp_path / "a.jpg")
    with open(tmp_path / "a.jpg", "ab") as file:
        file.write(b"a film, as some telephones append")
    assert read(tmp_path / "a.jpg").shape == CORNERS.shape


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\0" * 500, "holds zeros alone"),
        (b"<!DOCTYPE html><html>404", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of Git LFS"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "is a JPEG XL image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "is not an image"),
        (b"words", "is not an image that can be read"),
    ],
)
def test_what_is_no_image_is_called_by_its_name(tmp_path, content, said):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.jpg {said}"):
        read_headers([str(tmp_path / "a.jpg")])


def test_heic_without_its_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("tfgpu.data.image_files._formats", lambda: ["PNG", "JPEG"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40))
    with pytest.raises(DataError, match=r"a\.jpg is a HEIC image: pip install 'tfgpu\[heic\]'"):
        read_headers([str(tmp_path / "a.jpg")])


def test_many_that_cannot_be_read_are_counted_in_one_line(tmp_path):
    paths = []
    for i in range(6):
        Image.fromarray(CORNERS).save(tmp_path / f"{i}.png")
        paths.append(str(tmp_path / f"{i}.png"))
        if i > 1:
            (tmp_path / f"{i}.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        read_headers(paths)
    assert str(caught.value) == (
        "4 of 6 images cannot be used, mend them or take them away: "
        f"{paths[2]} is empty; {paths[3]} is empty; {paths[4]} is empty; and 1 more"
    )
