"""Images and texts: the samples that ship with installed packages, and what users' files can be."""

import io
import os
import random
import re
import string
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, features

from mirlib import MirlibError
from mirlib.data import draw, find_images, load_image, read_texts, sample_images, sample_texts

# ---------------------------------------------------------------------------------------------------------------------
# Samples


def pixels(images):
    return [np.asarray(image) for image in images]


def test_crops_are_reproducible_and_the_first_of_more_are_the_same():
    few, again, more = sample_images(6, seed=3), sample_images(6, seed=3), sample_images(20, seed=3)
    for other in (again, more[:6]):
        for a, b in zip(pixels(few), pixels(other), strict=True):
            assert np.array_equal(a, b)
    other = sample_images(6, seed=4)
    assert any(a.shape != b.shape or (a != b).any() for a, b in zip(pixels(few), pixels(other), strict=True))


def test_crops_are_real_pictures_of_the_kind_asked_for():
    for kind in ("photograph", "scan", "any"):
        images = sample_images(40, kind=kind)
        assert len(images) == 40
        for image in images:
            assert image.mode == "RGB" and image.width == image.height and 96 <= image.width <= 256
            assert np.asarray(image).std() > 1, f"an empty crop: {image.info['source']}"
        kinds = [image.info["source"].split()[0] for image in images]
        assert kinds.count("scan") == {"photograph": 0, "scan": 40, "any": 10}[kind]
    assert len({image.info["source"] for image in images}) == 40, "crops repeat"
    photographs = {image.info["source"].split()[1] for image in sample_images(60, kind="photograph")}
    assert len(photographs) >= 5


def test_no_crops_and_an_unknown_kind():
    assert len(sample_images(0)) == 0
    with pytest.raises(MirlibError, match="unknown kind of picture 'painting'; choose one of photograph, scan, any"):
        sample_images(1, kind="painting")


def test_crops_can_be_sliced_and_counted_from_the_end():
    images = sample_images(5)
    assert len(images[1:3]) == 2 and np.array_equal(images[-1], images[4])
    with pytest.raises(IndexError):
        images[5]
    assert len(list(images)) == 5


def test_texts_are_reproducible_and_the_first_of_more_are_the_same():
    assert sample_texts(10, seed=3) == sample_texts(50, seed=3)[:10]
    assert sample_texts(10, seed=3) != sample_texts(10, seed=4)
    assert len(set(sample_texts(300))) == 300, "texts repeat"


def test_texts_are_english_prose():
    texts = sample_texts(500)
    for text in texts:
        assert 8 <= len(text.split()) <= 120
        assert text == " ".join(text.split())
        assert not any(mark in text for mark in (">>>", "::=", "----", "====", "****", "+--")), f"markup: {text}"
    everything = "".join(texts)
    letters = sum(character in string.ascii_letters + " " for character in everything) / len(everything)
    assert letters > 0.85, f"{letters:.0%} letters and spaces are too few for prose"
    words = re.findall(r"[a-z]+", " ".join(texts).lower())
    common = sum(word in {"the", "of", "is", "a", "to", "and", "in", "for", "be", "an"} for word in words) / len(words)
    assert common > 0.2, f"{common:.0%} of the words are the commonest of English"


def test_more_texts_than_there_are():
    with pytest.raises(MirlibError, match=r"topics hold \d+ paragraphs, 1000000 were asked for"):
        sample_texts(1_000_000)


# ---------------------------------------------------------------------------------------------------------------------
# Images of users


RED = (200, 30, 40)


def picture(width=8, height=6):
    """A dark picture with a red upper left corner."""
    image = Image.new("RGB", (width, height), (10, 20, 30))
    image.putpixel((0, 0), RED)
    return image


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I"])
def test_modes(mode):
    image = Image.new(mode, (5, 4))
    found = load_image(image)
    assert found.mode == "RGB" and found.size == (5, 4)


@pytest.mark.parametrize("suffix", ["png", "jpg", "jfif", "gif", "bmp", "tif", "webp", "ppm", "jp2", "avif"])
def test_formats(suffix, tmp_path):
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow does not read AVIF: install 11.3 or newer")
    picture(40, 30).save(tmp_path / f"a.{suffix}")
    for source in (tmp_path / f"a.{suffix}", str(tmp_path / f"a.{suffix}")):
        image = load_image(source)
        assert image.mode == "RGB" and image.size == (40, 30)
        assert np.abs(np.asarray(image)[-1, -1] - np.array([10, 20, 30])).max() < 12


def png_of(colour_type, depth, row, *chunks, size=(2, 1)):
    """A PNG of one row by the letter of its specification: what Pillow would not write."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", *size, depth, colour_type, 0, 0, 0)
    stored = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in stored)


TRANSPARENT = {
    "grey, 1 bit": (png_of(0, 1, b"\x40", (b"tRNS", b"\0\0")), (255,) * 3),
    "grey, 2 bits": (png_of(0, 2, b"\x40", (b"tRNS", b"\0\1")), (0,) * 3),
    "grey, 4 bits": (png_of(0, 4, b"\x50", (b"tRNS", b"\0\5")), (0,) * 3),
    "grey, 8 bits": (png_of(0, 8, bytes([77, 3]), (b"tRNS", b"\0\x4d")), (3,) * 3),
    "grey, 16 bits": (png_of(0, 16, struct.pack(">2H", 1000, 257 * 9), (b"tRNS", b"\x03\xe8")), (9,) * 3),
    "colour, 8 bits": (png_of(2, 8, bytes([1, 2, 3, 4, 5, 6]), (b"tRNS", b"\0\1\0\2\0\3")), (4, 5, 6)),
    "colour, 16 bits": (
        png_of(2, 16, struct.pack(">6H", 300, 600, 900, 1024, 1280, 1536), (b"tRNS", b"\x01\x2c\x02\x58\x03\x84")),
        (4, 5, 6),
    ),
    "palette": (png_of(3, 8, b"\0\1", (b"PLTE", bytes(5) + b"\5"), (b"tRNS", b"\0")), (0, 0, 5)),
    "palette with levels": (
        png_of(3, 8, b"\0\1", (b"PLTE", bytes(3) + bytes([200, 10, 10])), (b"tRNS", b"\0\x80")), (227, 132, 132),
    ),
    "grey and alpha": (png_of(4, 8, bytes([0, 0, 9, 255])), (9,) * 3),
    "colour and alpha, 16 bits": (png_of(6, 16, struct.pack(">8H", 0, 0, 0, 0, 0, 0, 2570, 65535)), (0, 0, 10)),
}  # fmt: skip


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparency_is_laid_on_white(kind, tmp_path):
    """The first pixel is wholly transparent; the second is a colour, of which alpha lets as much white through."""
    data, colour = TRANSPARENT[kind]
    (tmp_path / "a.png").write_bytes(data)
    found = np.asarray(load_image(tmp_path / "a.png")).astype(int)
    assert found[0, 0].tolist() == [255, 255, 255]
    assert np.abs(found[0, 1] - colour).max() <= 1


@pytest.mark.parametrize(
    ("mode", "pixel", "colour"),
    [
        ("RGBA", (10, 20, 30, 102), (157, 161, 165)),  # 0.4 of the colour and 0.6 of white
        ("RGBa", (4, 8, 12, 102), (157, 161, 165)),  # the same, multiplied already
        ("LA", (10, 102), (157,) * 3),
        ("La", (4, 102), (157,) * 3),
        ("PA", (0, 0), (255,) * 3),
        ("LAB", (255, 128, 128), (255,) * 3),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("1", 1, (255,) * 3),
        ("I;16", 257 * 40, (40,) * 3),
        ("I;16B", 257 * 40, (40,) * 3),
        ("I", 257 * 40, (40,) * 3),
        ("I", 40, (40,) * 3),
    ],
)
def test_colours_of_modes(mode, pixel, colour):
    found = np.asarray(load_image(Image.new(mode, (3, 2), pixel))).astype(int)
    assert np.abs(found - colour).max() <= 1


def test_arrays_with_alpha_are_laid_on_white():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (300, 7, 4), dtype=np.uint8)  # more rows than are converted at once
    alpha = pixels[..., 3:] / 255
    assert np.abs(np.asarray(load_image(pixels)) - (pixels[..., :3] * alpha + 255 * (1 - alpha))).max() <= 1


@pytest.mark.parametrize("pixel", [70_000, -1])
def test_integers_of_an_unknown_range_are_refused(pixel):
    with pytest.raises(MirlibError, match=rf"image in memory has 32-bit pixels from {pixel} to {pixel}, .*store it"):
        load_image(Image.new("I", (2, 2), pixel))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(suffix, tmp_path):
    """Pillow's conversion makes every level above 255 of 65535 white: a scan would become an empty page."""
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / f"ramp.{suffix}")
    found = np.asarray(load_image(tmp_path / f"ramp.{suffix}")).astype(int)
    assert np.abs(found[..., 0] - np.arange(256).reshape(16, 16)).max() <= 1
    assert (found[..., 0] == found[..., 2]).all()


UPRIGHT = {  # EXIF, tag 274: where the first row and the first column of what is stored belong
    1: lambda a: a, 2: np.fliplr, 3: lambda a: a[::-1, ::-1], 4: np.flipud, 5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: np.rot90,
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("number", UPRIGHT)
def test_pictures_are_turned_as_the_camera_was_held(number, suffix, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = number
    Image.fromarray(pixels).save(
        tmp_path / f"a.{suffix}", exif=exif, **({"lossless": True} if suffix == "webp" else {})
    )
    found = load_image(tmp_path / f"a.{suffix}")
    assert np.array_equal(found, UPRIGHT[number](pixels)), "turned the wrong way, or twice"
    assert np.array_equal(load_image(found), found)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize(
    "exif", [b"garbage", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01", b""]
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about the damage
def test_broken_exif_spoils_no_picture(exif, suffix, tmp_path):
    Image.new("RGB", (8, 8), RED).save(tmp_path / f"a.{suffix}", exif=b"Exif\0\0" + exif)
    assert np.abs(np.asarray(load_image(tmp_path / f"a.{suffix}")).astype(int) - RED).max() < 12


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate"])
def test_damaged_pixels_behind_a_whole_header_are_no_picture(compression, tmp_path):
    stored = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(
        stored, "tiff", compression=compression
    )
    data = bytearray(stored.getvalue())
    data[20:400] = bytes(380)
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(MirlibError, match="cannot read the image .*a.tif: decoder error"):
        load_image(tmp_path / "a.tif")


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}])
def test_a_tiff_that_points_to_no_exif(options, tmp_path):
    Image.new("RGB", (8, 8), RED).save(tmp_path / "a.tif", tiffinfo={0x8769: 9}, **options)
    assert load_image(tmp_path / "a.tif").getpixel((3, 3)) == RED


def test_palette_colours_are_kept(tmp_path):
    picture().convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    assert load_image(tmp_path / "palette.png").getpixel((0, 0)) == RED


def test_first_frame_of_an_animation(tmp_path):
    picture().save(tmp_path / "moving.gif", save_all=True, append_images=[Image.new("RGB", (8, 6), (0, 255, 0))])
    red, green, blue = load_image(tmp_path / "moving.gif").getpixel((5, 5))
    assert (red, green, blue) == (10, 20, 30)


def test_one_pixel_and_extreme_shapes(tmp_path):
    for size in ((1, 1), (1, 500), (700, 1)):
        picture(*size).save(tmp_path / "a.png")
        assert load_image(tmp_path / "a.png").size == size


def test_the_source_image_is_left_alone():
    image = picture().convert("L")
    before = image.tobytes()
    load_image(image)
    assert image.mode == "L" and image.tobytes() == before
    array = np.zeros((3, 4, 3), np.uint8)
    load_image(array).putpixel((0, 0), (1, 1, 1))
    assert array.max() == 0


def test_arrays():
    rng = np.random.default_rng(0)
    colour, grey = (rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((6, 8, 3), (6, 8)))
    assert np.array_equal(load_image(colour), colour)
    assert np.array_equal(np.asarray(load_image(grey))[..., 1], grey)
    assert np.array_equal(load_image(np.dstack([colour, np.full((6, 8), 255, np.uint8)])), colour)
    assert np.array_equal(load_image(colour[:, ::-1]), colour[:, ::-1])
    frozen = colour.copy()
    frozen.flags.writeable = False
    assert np.array_equal(load_image(frozen), colour)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((4, 4, 3)), "expected uint8 from 0 to 255, got float64"),
        (np.zeros((4, 4, 3), np.int64), "got int64"),
        (np.zeros((3, 8, 8), np.uint8), r"expected shape \(h, w\).* got \(3, 8, 8\)"),
        (np.zeros((4, 4, 2), np.uint8), r"got \(4, 4, 2\)"),
        (np.zeros(4, np.uint8), r"got \(4,\)"),
        (np.zeros((0, 4, 3), np.uint8), "has no pixels"),
        (Image.new("RGB", (0, 3)), "has no pixels"),
        (Image.new("F", (3, 3)), "floating-point pixels"),
        ([[1, 2]], "expected the path of an image, a PIL image or an array, got list"),
        (None, "got NoneType"),
        (3, "got int"),
        ("no/such/image.png", "no such image: no/such/image.png"),
    ],
    ids="float int64 axes_swapped two_channels flat no_rows no_columns float_pixels list none number absent".split(),
)
def test_sources_that_are_no_images(source, message):
    with pytest.raises(MirlibError, match=message):
        load_image(source)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tif", "webp"])
def test_truncated_files_are_named(suffix, tmp_path):
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    for keep in (0, 5, 30, len(whole) // 2):
        path.write_bytes(whole[:keep])
        with warnings.catch_warnings(), pytest.raises(MirlibError, match=f"cannot read the image .*cut.{suffix}"):
            warnings.simplefilter("ignore")  # Pillow's, about the damage
            load_image(path)


def test_an_image_that_was_opened_but_not_read_is_named_too(tmp_path):
    path = tmp_path / "cut.png"
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    with Image.open(path) as image, pytest.raises(MirlibError, match="cannot read the image .*cut.png"):
        load_image(image)


def test_text_in_an_image_file_and_a_folder(tmp_path):
    (tmp_path / "a.png").write_text("not an image")
    for source in (tmp_path / "a.png", tmp_path):
        with pytest.raises(MirlibError, match="cannot read the image"):
            load_image(source)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tif", "webp"])
def test_damaged_files_are_images_or_errors_in_words(suffix, tmp_path):
    """Bytes changed and files cut at random: nothing but MirlibError may come out."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    stored, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if suffix in ("jpg", "png", "webp", "tif") else {}
    Image.fromarray(noise).save(stored, {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix), **options)
    generator = random.Random(0)
    outcomes = set()
    for _ in range(120):
        data = bytearray(stored.getvalue())
        if generator.random() < 0.3:
            del data[generator.randrange(len(data)) :]
        for _ in range(generator.choice([1, 3, 20]) if data else 0):
            data[generator.randrange(min(len(data), generator.choice([60, 200, 10**9])))] = generator.randrange(256)
        (tmp_path / f"a.{suffix}").write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about the damage
            try:
                outcomes.add(load_image(tmp_path / f"a.{suffix}").mode)
            except MirlibError:
                outcomes.add("refused")
    assert "refused" in outcomes and outcomes <= {"refused", "RGB"}


def test_pictures_too_large_to_hold_are_refused(tmp_path, monkeypatch):
    (tmp_path / "bomb.png").write_bytes(png_of(2, 8, b"", size=(13_000, 13_000)))
    with pytest.raises(
        MirlibError, match="bomb.png has 13000 × 13000 pixels, and the most that are read are 134 million"
    ):
        load_image(tmp_path / "bomb.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of 100 million pixels, Pillow would warn
        (tmp_path / "large.png").write_bytes(png_of(0, 8, b"", size=(10_000, 10_000)))
        with pytest.raises(MirlibError, match="large.png: (?!.*the most)"):  # there are no pixels behind the header
            load_image(tmp_path / "large.png")
    picture(100, 100).save(tmp_path / "a.webp")
    monkeypatch.setattr("mirlib.data.MOST_PIXELS", 10_000)
    assert load_image(picture(100, 100)).size == (100, 100)
    for source in (tmp_path / "a.webp", np.zeros((101, 100), np.uint8)):
        with pytest.raises(MirlibError, match="make it smaller"):
            load_image(source)
    monkeypatch.setattr("mirlib.data.MOST_BYTES", 10)
    with pytest.raises(MirlibError, match="a.webp: more than"):
        load_image(tmp_path / "a.webp")


def test_no_picture_starts_another_program(tmp_path, monkeypatch):
    """Pillow goes by the content: it hands PostScript of any name to the first `gs` on the PATH."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\necho called >> {tmp_path}/called\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    subprocess.run(["gs"], check=True)
    (tmp_path / "called").unlink()  # the trap works
    for name, data in {
        "photo.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n%%EOF\n",
        "page.jpg": b"%PDF-1.4\n",
        "a.webp": b"BLP2\1\0\0\0\1\0\0\0" + struct.pack("<II", 16, 16) + bytes(1200),
        "a.avif": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(50),
        "icon.png": b"\0\0\1\0\1\0" + bytes(60),
        "meta.png": b"\xd7\xcd\xc6\x9a\0\0" + bytes(60),
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(MirlibError, match=f"cannot read the image .*{name}: it is no picture of the formats "):
            load_image(tmp_path / name)
    assert not (tmp_path / "called").exists()


def test_pipes_and_devices_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    os.mkfifo(tmp_path / "a.txt")
    for name in (tmp_path / "a.png", "/dev/zero"):
        for read in (load_image, lambda name: find_images([name])):
            with pytest.raises(MirlibError, match="it is a pipe, a socket or a device"):
                read(name)
    for name in (tmp_path / "a.txt", "/dev/zero"):
        with pytest.raises(MirlibError, match="it is a pipe, a socket or a device"):
            read_texts(name)


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are Unicode there")
def test_names_in_messages_do_not_reach_the_terminal_as_they_are(tmp_path):
    for name in (b"a\x1b[31m.png", b"caf\xe9.png", "left\u202eright.png".encode(), b"line\nbreak.png"):
        path = os.path.join(os.fsencode(tmp_path), name)
        with open(path, "wb") as file:
            file.write(b"x")
        with pytest.raises(MirlibError, match="cannot read the image") as caught:
            load_image(os.fsdecode(path))
        assert str(caught.value).isprintable()


def test_finding_images(tmp_path):
    for name in ("b.png", "a.JPG", "sub/deep/c.webp", "notes.txt", "d.jpeg.part"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    found = find_images([tmp_path])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a.JPG", "b.png", "sub/deep/c.webp"]
    assert find_images([str(tmp_path / "notes.txt")]) == [tmp_path / "notes.txt"]  # named by the user: tried as it is
    assert len(find_images([tmp_path / "b.png", tmp_path / "b.png"])) == 2
    with pytest.raises(MirlibError, match="no such file or folder: .*missing"):
        find_images([tmp_path, tmp_path / "missing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(MirlibError, match=r"no images in .*empty \(looked for \.apng, "):
        find_images([tmp_path / "empty"])


def files(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_links_are_followed_once(tmp_path):
    folder, store = tmp_path / "data", tmp_path / "store"
    files(store, "vg/1.jpg", "vg/2.jpg", "alone.png")
    files(folder, "a.png", "sub/b.png")
    (folder / "vg").symlink_to(store / "vg")
    (folder / "again").symlink_to(store / "vg")
    (folder / "sub" / "loop").symlink_to(folder)
    (store / "vg" / "up").symlink_to(folder)
    (folder / "copy of b.png").symlink_to(folder / "sub" / "b.png")
    (folder / "linked.png").symlink_to(store / "alone.png")
    (folder / "broken.png").symlink_to(tmp_path / "gone.png")
    (folder / "itself.png").symlink_to(folder / "itself.png")
    with pytest.warns(UserWarning, match=r"data: 5 images; passed over 2 broken or special \(links, pipes, devices\)$"):
        found = find_images([folder])
    assert [str(path.relative_to(folder)) for path in found] == [
        "a.png", "again/1.jpg", "again/2.jpg", "linked.png", "sub/b.png",
    ]  # fmt: skip


def test_what_is_passed_over_is_counted(tmp_path):
    files(
        tmp_path,
        "a.jpg",
        "b.AVIF",
        "c.jfif",
        "d.ppm",
        "e.pgm",
        "f.jp2",
        ".hidden.png",
        "._a.jpg",
        "Thumbs.db",
        "README",
    )
    files(tmp_path, ".ipynb_checkpoints/a.jpg", "__MACOSX/a.jpg", "sub/@eaDir/a.jpg/SYNO_THUMB.jpg", "sub/g.txt")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.warns(UserWarning) as said:
        found = find_images([tmp_path])
    assert [path.name for path in found] == ["a.jpg", "b.AVIF", "c.jfif", "d.ppm", "e.pgm", "f.jp2"]
    assert [str(each.message).removeprefix(str(tmp_path)) for each in said] == [
        ": 6 images; passed over 1 broken or special (links, pipes, devices) and 5 hidden and 3 of other kinds "
        "(.db, .txt, no ending)"
    ]
    with pytest.raises(MirlibError, match=r"no images in .*sub \(looked for .*; passed over 1 hidden and 1 of other"):
        find_images([tmp_path / "sub"])
    with pytest.warns(UserWarning, match=r"1 texts; passed over .*6 of other kinds"):
        files(tmp_path / "sub", *"123456")
        read_texts(tmp_path / "sub")
    files(tmp_path / ".photos", "a.png")
    assert len(find_images([tmp_path / ".photos"])) == 1, "named by the user"


# ---------------------------------------------------------------------------------------------------------------------
# Texts of users


def test_one_text_a_line(tmp_path):
    (tmp_path / "a.txt").write_text("  First line. \n\n \t\nSecond line.\n", encoding="utf-8")
    assert read_texts(tmp_path / "a.txt") == ["First line.", "Second line."]


@pytest.mark.parametrize("form", ["file", "folder"])
def test_windows_line_ends_and_byte_order_marks(form, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfFirst line.\r\nSecond \xc3\xa9t\xc3\xa9.\r\n")
    if form == "file":
        assert read_texts(tmp_path / "a.txt") == ["First line.", "Second été."]
    else:
        assert read_texts(tmp_path) == ["First line.\nSecond été."]


def test_characters_that_only_look_like_line_ends_stay_in_their_line(tmp_path):
    text = "one\u2028two\x0cthree\x85four"
    (tmp_path / "a.txt").write_text(f"{text}\nnext\n", encoding="utf-8")
    assert read_texts(tmp_path / "a.txt") == [text, "next"]


def test_one_text_a_file_in_sorted_order(tmp_path):
    for name, text in {"b.txt": "B", "a.md": "A", "sub/c.TXT": "C", "d.pdf": "no"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert read_texts(str(tmp_path)) == ["A", "B", "C"]


def test_stories_end_at_their_highlights(tmp_path):
    (tmp_path / "a.story").write_text("The news.\n\nMore news.\n\n@highlight\n\nIn short\n\n@highlight\n\nIn shorter")
    (tmp_path / "b.txt").write_text("Stays @highlight whole.")
    assert read_texts(tmp_path) == ["The news.\n\nMore news.", "Stays @highlight whole."]


def test_unreadable_texts_are_named_or_left_out(tmp_path):
    (tmp_path / "a.txt").write_text("Good.")
    for name, content, message in (
        ("b.txt", b"caf\xe9", r"b\.txt: not UTF-8 text \(byte 3\)"),
        ("c.txt", b" \n", r"c\.txt: the text is empty"),
        ("d.story", b"@highlight\n\nno body", r"d\.story: the text is empty"),
        ("e.txt", "wide".encode("utf-16"), r"e\.txt: not UTF-8 text: it is UTF-16"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MirlibError, match=message):
            read_texts(tmp_path)
        said = []
        assert read_texts(tmp_path, said.append) == ["Good."]
        assert len(said) == 1 and re.search(message, said[0])
        (tmp_path / name).unlink()


def test_undecodable_lines_are_named_or_left_out(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"Good.\ncaf\xe9\nBetter.\n")
    with pytest.raises(MirlibError, match=r"a\.txt, line 2: not UTF-8 text \(byte 3\)"):
        read_texts(tmp_path / "a.txt")
    said = []
    assert read_texts(tmp_path / "a.txt", said.append) == ["Good.", "Better."]
    assert len(said) == 1 and "line 2" in said[0]


def test_texts_know_where_they_come_from(tmp_path):
    (tmp_path / "a.txt").write_text("One.\n\nThree.\n")
    assert [text.source for text in read_texts(tmp_path / "a.txt")] == [
        f"{tmp_path}/a.txt, line 1", f"{tmp_path}/a.txt, line 3",
    ]  # fmt: skip
    assert [text.source for text in read_texts(tmp_path)] == [f"{tmp_path}/a.txt"]


def test_binary_files_and_endless_lines_are_no_texts(tmp_path, monkeypatch):
    monkeypatch.setattr("mirlib.data.LONGEST_LINE", 1000)
    for number, (data, message) in enumerate(
        [
            (b"Good.\n\0\1\2\n", "line 2: not UTF-8 text: it holds a zero byte"),
            (b"Good.\n" + b"x" * 5000, "line 2: the line has"),
        ]
    ):
        path = tmp_path / f"{number}.txt"
        path.write_bytes(data + b"\nLast.")
        with pytest.raises(MirlibError, match=message):
            read_texts(path)
        said = []
        assert [text.source[-6:] for text in read_texts(path, said.append)] == ["line 1", f"line {4 - number}"]
        assert len(said) == 1
    (tmp_path / "0.txt").unlink()
    with pytest.raises(MirlibError, match=r"1\.txt: the text has more than"):
        read_texts(tmp_path)


def test_no_texts(tmp_path):
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(MirlibError, match="no texts in"):
        read_texts(tmp_path)
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(MirlibError, match="no texts in .*blank.txt"):
        read_texts(tmp_path / "blank.txt")
    with pytest.raises(MirlibError, match="no such file or folder: .*missing"):
        read_texts(tmp_path / "missing")


# ---------------------------------------------------------------------------------------------------------------------
# Drawing


def test_draws_are_reproducible_and_the_first_of_more_are_the_same():
    items = list("abcdefghij")
    assert draw(items, 4, 0, "letters") == draw(items, 9, 0, "letters")[:4]
    assert draw(items, 10, 0, "letters") != draw(items, 10, 1, "letters")
    assert sorted(draw(items, 10, 5, "letters")) == list(range(10)), "an item was drawn twice"
    firsts = {draw(items, 1, seed, "letters")[0] for seed in range(200)}
    assert len(firsts) == 10, "some items are never first"


def test_unusable_items_are_passed_over_and_not_asked_twice():
    asked = []

    def usable(item):
        asked.append(item)
        return item % 2 == 0

    chosen = draw(range(10), 5, 0, "numbers", usable)
    assert sorted(chosen) == [0, 2, 4, 6, 8]
    assert len(asked) == len(set(asked))
    asked.clear()
    draw(range(1000), 3, 0, "numbers", usable)
    assert len(asked) < 50, "items were read that nobody wants"


def test_too_few_items_say_how_many_there_are():
    with pytest.raises(MirlibError, match=r"5 images were asked for, there are 3; lower num \(--num\)"):
        draw("abc", 5, 0, "images")
    with pytest.raises(MirlibError, match=r"3 texts were asked for, there are 4, 2 of them usable; lower num"):
        draw(range(4), 3, 0, "texts", lambda item: item < 2)
    with pytest.raises(MirlibError, match="1 images were asked for, there are 0"):
        draw([], 1, 0, "images")


@pytest.mark.parametrize("name", ["table.pq", "frame.feather", "words.npz"])
def test_a_file_of_another_kind_is_no_file_of_texts(name, tmp_path):
    (tmp_path / name).write_bytes(b"PAR1\n\0\0\0caption\nA dog runs.\n" * 3)
    skipped = []
    with pytest.raises(MirlibError, match="full of zero bytes, so it is no file of texts"):
        read_texts(tmp_path / name, skipped.append)
    assert not skipped
