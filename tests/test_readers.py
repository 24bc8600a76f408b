"""Images, texts and pairs out of every kind of source: the same items in the same order, and errors that name them."""

import builtins
import csv
import gzip
import io
import json
import os
import random
import re
import socket
import tarfile

import numpy as np
import pytest
from command import mir, refused
from PIL import Image
from tiny_processors import lvlm

from mirlib import MirlibError, score
from mirlib.data import draw, load_image, sample_images, sample_texts
from mirlib.readers import open_images, open_pairs, open_texts

COUNT = 6
COLOURS = [(40 * number, 255 - 30 * number, 7 * number) for number in range(COUNT)]
CAPTIONS = [f"Caption number {number}, with a word: été." for number in range(COUNT)]


@pytest.fixture(autouse=True)
def no_network(request, monkeypatch):
    """A local source never causes traffic: whoever tries is found out, also where the error is caught."""
    if "stand_in_for_the_hub" in request.fixturenames:
        yield
        return
    tried = []

    def refuse(*arguments, **_):
        tried.append(arguments)
        raise OSError("a test tried to reach the network")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    yield
    assert not tried


@pytest.fixture
def stand_in_for_the_hub(hub, monkeypatch):
    """The package datasets answers for the repositories of the paper out of local folders, and may ask the hub."""
    import datasets

    asked, load = [], datasets.load_dataset_builder
    folders = {"lmms-lab/textvqa": hub[0], "abisee/cnn_dailymail": hub[1]}

    def load_builder(name, config=None):
        asked.append((name, config))
        return load(str(folders[name]))

    monkeypatch.setattr(datasets, "load_dataset_builder", load_builder)
    return asked


def png(colour):
    stored = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(stored, "png")
    return stored.getvalue()


def colours_of(images):
    """The colour of the first pixel of each, after the way that `score` takes with it."""
    return [load_image(images[i]).getpixel((0, 0)) for i in range(len(images))]


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def sample(number, text="txt"):
    """The members of one key of a shard."""
    written = {"txt": CAPTIONS[number].encode(), "json": json.dumps({"id": 1, "caption": CAPTIONS[number]}).encode()}
    return [(f"./{number:03}.png", png(COLOURS[number])), (f"./{number:03}.{text}", written[text])]


def write_lines(path, records):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def lines(tmp_path):
    """A JSON Lines file beside a folder of images."""
    (tmp_path / "pictures").mkdir()
    for number, colour in enumerate(COLOURS):
        (tmp_path / "pictures" / f"{number}.png").write_bytes(png(colour))
    records = [{"image": f"pictures/{number}.png", "text": CAPTIONS[number]} for number in range(COUNT)]
    return write_lines(tmp_path / "pairs.jsonl", records)


# ---------------------------------------------------------------------------------------------------------------------
# JSON Lines


def test_pairs_of_json_lines(lines, monkeypatch, tmp_path):
    monkeypatch.chdir("/")  # relative paths are those of the file
    pairs = open_pairs(lines)
    assert colours_of(pairs.images) == COLOURS and list(pairs.texts) == CAPTIONS
    assert colours_of(open_images(lines)) == COLOURS and list(open_texts(lines)) == CAPTIONS
    other = write_lines(tmp_path / "b.jsonl", [{"photo": str(p), "words": "  a b "} for p in pairs.images[:2]] + [""])
    pairs = open_pairs(other, image_field="photo", text_field="words")
    assert colours_of(pairs.images) == COLOURS[:2] and list(pairs.texts) == ["a b", "a b"]
    with pytest.raises(MirlibError, match=r"b\.jsonl, line 1: which field holds the images\? There is photo, words"):
        open_pairs(other)
    with pytest.raises(MirlibError, match=r"line 1: there is no field 'phot'; there is photo, words"):
        open_images(other, image_field="phot")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 2: not JSON"),
        ("[1]", r"line 2: expected a JSON object, got list"),
        ({"text": "no image"}, r"line 2: there is no field 'image'; there is text"),
        ({"image": "x.png", "text": 3}, r"line 2, field 'text': expected a text, got int"),
        ({"image": None, "text": "x"}, r"line 2, field 'image': expected the path of an image, got NoneType"),
        ('{"image": "x", "text": "\udcff"}', r"line 2: not UTF-8 text"),
    ],
)
def test_lines_that_are_no_pairs_are_named_or_left_out(line, message, lines):
    good = lines.read_text(encoding="utf-8").splitlines()[:2]
    text = "\n".join([good[0], line if isinstance(line, str) else json.dumps(line), good[1]])
    lines.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(MirlibError, match=message):
        open_pairs(lines)
    said = []
    pairs = open_pairs(lines, on_unreadable=said.append)
    assert colours_of(pairs.images) == COLOURS[:2] and list(pairs.texts) == CAPTIONS[:2], (
        "a text moved to another image"
    )
    assert len(said) == 1


def test_files_without_pairs(tmp_path):
    with pytest.raises(MirlibError, match="no pairs in .*empty.jsonl"):
        open_pairs(write_lines(tmp_path / "empty.jsonl", [""]))
    with pytest.raises(MirlibError, match="no such file: .*missing.jsonl"):
        open_pairs(tmp_path / "missing.jsonl")
    with pytest.raises(MirlibError, match="pairs are read from JSON Lines"):
        open_pairs(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# Other files of records: LLaVA's training data, COCO, arrays, tables

EXPECTED = list(zip(COLOURS, CAPTIONS, strict=True))


def turn(speaker, value):
    return {"from": speaker, "value": value}


def blip_laion_cc_sbu(number):
    """blip_laion_cc_sbu_558k.json: one caption; the placeholder stands before or behind the question."""
    asked = ["Describe the image.\n<image>", "<image>\nWhat is this?"][number % 2]
    return {
        "id": f"{number:09}", "image": f"{number}.png",
        "conversations": [turn("human", asked), turn("gpt", CAPTIONS[number])],
    }  # fmt: skip


def llava_v1_5_mix(number):
    """llava_v1_5_mix665k.json: many turns, the pictures of each data set in a folder of its own."""
    return {
        "id": str(number), "image": f"coco/train2017/{number}.png",
        "conversations": [
            turn("human", "<image>\nWhat is it?\nAnswer the question using a single word or phrase."),
            turn("gpt", f"\n{CAPTIONS[number]}"), turn("human", "And this?"), turn("gpt", "Another answer"),
        ],
    }  # fmt: skip


def sharegpt4v(number):
    """share-captioner_coco_lcs_sam_1246k_1107.json and sharegpt4v_instruct_gpt4-vision_cap100k.json."""
    folder = ("sam/images", "llava/llava_pretrain/images", "coco/train2017")[number % 3]
    return {
        "id": f"sa_{number}", "image": f"{folder}/{number}.png",
        "conversations": [turn("human", "<image>\nDescribe."), turn("gpt", CAPTIONS[number] + "\n<image>")],
    }  # fmt: skip


def text_alone(number):
    return {"id": str(number), "model": "", "conversations": [turn("human", "Hello"), turn("gpt", "Only words")]}


@pytest.mark.parametrize("form", ["array", "indented", "lines"])
@pytest.mark.parametrize("layout", [blip_laion_cc_sbu, llava_v1_5_mix, sharegpt4v])
def test_training_files_of_llava(layout, form, tmp_path):
    records = [layout(number) for number in range(COUNT)]
    for record, colour in zip(records, COLOURS, strict=True):
        path = tmp_path / "playground" / record["image"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(colour))
    records = [text_alone(0), *records[:3], text_alone(1), *records[3:]]
    if form == "lines":
        path = write_lines(tmp_path / "train.json", records)
    else:
        path = tmp_path / "train.json"
        path.write_text(json.dumps(records, indent=2 if form == "indented" else None))
    with pytest.warns(UserWarning, match=r"train\.json: 6 pairs; passed over 2 of text alone"):
        pairs = open_pairs(path, image_root=tmp_path / "playground")
    assert list(zip(colours_of(pairs.images), pairs.texts, strict=True)) == EXPECTED
    unit = {"array": "record", "indented": "record", "lines": "line"}[form]
    assert [text.source for text in pairs.texts] == [f"{path}, {unit} {number}" for number in (2, 3, 4, 6, 7, 8)]
    assert list(open_texts(path)) == ["Only words", *CAPTIONS[:3], "Only words", *CAPTIONS[3:]]
    with pytest.warns(UserWarning, match="6 images"):
        assert colours_of(open_images(path, image_root=tmp_path / "playground")) == COLOURS
    with pytest.warns(UserWarning, match="6 pairs"), pytest.raises(MirlibError) as caught:
        open_pairs(path).images[0]
    assert f"{path}, {unit} 2, field 'image': no such image: {records[1]['image']} (looked in {tmp_path} and" in str(
        caught.value
    )
    with pytest.raises(MirlibError, match=r"image_root \(--image-root\): no such folder: .*nowhere"):
        open_pairs(path, image_root=tmp_path / "nowhere")


def write_table(path, delimiter):
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        rows = csv.writer(file, delimiter=delimiter)
        rows.writerow(["id", "image", "caption"])
        rows.writerows([n, f"{n}.png", f'{text}\nand a "second", longer\tline;'] for n, text in enumerate(CAPTIONS))


def test_every_layout_holds_the_same_pairs(tmp_path):
    (tmp_path / "images").mkdir()
    for number, colour in enumerate(COLOURS):
        (tmp_path / "images" / f"{number}.png").write_bytes(png(colour))
    pairs = [{"image": f"{n}.png", "caption": text} for n, text in enumerate(CAPTIONS)]
    torn = {"images": [{"file_name": "a.png"}, 3], "annotations": [{"caption": "of no image"}, [], {"image_id": 1}]}
    (tmp_path / "torn.json").write_text(json.dumps(torn))
    with pytest.raises(MirlibError, match=r"torn\.json, record 1: no image has its image_id None"):
        open_pairs(tmp_path / "torn.json")
    coco = {
        "info": {}, "licenses": [{"id": 1}],
        "images": [{"id": 10 + n, "file_name": f"{n}.png"} for n in range(COUNT)],
        "annotations": [{"id": n, "image_id": 10 + n, "caption": text} for n, text in enumerate(CAPTIONS)][::-1],
    }  # fmt: skip
    lists = [{"image": [pair["image"]], "caption": [pair["caption"], "another"]} for pair in pairs]
    messages = [
        {
            "images": [pair["image"]],
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": pair["caption"]}]},
            ],
        }
        for pair in pairs
    ]
    for name, stored in {
        "array.json": pairs, "array in.jsonl": pairs, "array in.txt": pairs,
        "one list.json": {"info": {}, "data": pairs}, "coco.json": coco, "lists.json": lists, "messages.json": messages,
    }.items():  # fmt: skip
        (tmp_path / name).write_text(json.dumps(stored), encoding="utf-8-sig" if name == "array.json" else "utf-8")
        found = open_pairs(tmp_path / name)
        assert sorted(zip(colours_of(found.images), found.texts, strict=True)) == sorted(EXPECTED), name
        assert sorted(open_texts(tmp_path / name)) == sorted(CAPTIONS), name
        assert colours_of(open_images(tmp_path / name)) == COLOURS, name
    for name, delimiter in {"a.csv": ",", "b.csv": ";", "c.tsv": "\t"}.items():
        write_table(tmp_path / name, delimiter)
        found = open_pairs(tmp_path / name)
        assert colours_of(found.images) == COLOURS, name
        assert list(found.texts) == [f'{text}\nand a "second", longer\tline;' for text in CAPTIONS], name
    (tmp_path / "texts.json").write_text(json.dumps(CAPTIONS))
    assert list(open_texts(tmp_path / "texts.json")) == CAPTIONS
    (tmp_path / "twice.json").write_text(json.dumps(pairs + pairs))
    assert colours_of(open_images(tmp_path / "twice.json")) == COLOURS, "each path once"
    assert len(open_pairs(tmp_path / "twice.json").texts) == 2 * COUNT


def test_texts_that_only_begin_like_json_stay_texts(tmp_path):
    for text in (
        "[1] A reference\n[2] Another",
        '["Quoted"] said he.\nThen.',
        "{curly} start\nnext",
        '["a",\n',
        "[]\nx",
    ):
        (tmp_path / "a.txt").write_text(text)
        assert list(open_texts(tmp_path / "a.txt")) == [line.strip() for line in text.split("\n") if line]
    (tmp_path / "a.txt").write_text('[{"text": "a"}, {"text": "b')
    with pytest.raises(MirlibError, match=r"a\.txt, record 2: not JSON"):
        open_texts(tmp_path / "a.txt")


REFUSED = {
    "deep.jsonl": (b"[" * 100_000, "line 1: not JSON"),
    "deep.json": (b'[{"text": ' + b"[" * 100_000, "record 1: not JSON .it is nested too deeply"),
    "cut.json": (b'[{"text": "a"}, {"te', "record 2: not JSON .*none after it can be read"),
    "more.json": (b'[{"text": "a"}] and', "record 2: not JSON .something stands behind the array"),
    "numbers.json": (b"[1, 2]", "record 1: expected a JSON object, got int"),
    "surrogate.jsonl": (rb'{"text": "a\ud800b"}', r"line 1, field 'text': not UTF-8 text \(character 1: \\ud800\)"),
    "latin.json": (b'[{"text": "caf\xe9"}]', r"record 1, field 'text': not UTF-8 text \(character 3"),
    "wide.json": ('[{"text": "a"}]'.encode("utf-16"), r"line 1: not UTF-8 text: it is UTF-16"),
    "nan.jsonl": (b'{"text": NaN}', "line 1, field 'text': expected a text, got float"),
    "object.jsonl": (b'{"text": {"en": "a"}}', "line 1, field 'text': expected a text, got an object with en"),
    "empty.jsonl": (b'{"text": "  "}', "line 1, field 'text': the text is empty"),
    "question.jsonl": (
        b'{"conversations": [{"from": "human", "value": "q"}]}',
        "no turn is from gpt .* there is human",
    ),
    "lists.json": (b'{"a": [{"x": 1}], "b": [{"x": 2}]}', "where are the records.* there is a, b"),
    "mapping.json": (b'{"a": {"text": "x"}}', "where are the records.* there is a"),
    "row.csv": (b"image,caption\na.png,x,y\n", r"row\.csv, line 2: not a row of the table \(3 fields, .*header has 2"),
    "quotes.csv": (b'image,caption\na.png,"the "new" one"\n', "line 2: not a row of the table .*doubled"),
    "open.csv": (b'caption\n"never closed\nmore\n', "line 2: not a row of the table: a quote opens here"),
    "latin.csv": (b"caption\ncaf\xe9\n", "line 2, field 'caption': not UTF-8 text"),
    "wide.csv": ("caption\nx\n".encode("utf-16"), r"line 1: not UTF-8 text: it is UTF-16"),
    "headless.tsv": (b"A caption\thttp://example.org/0.jpg\nx\ty\n", "line 1, the header: which field holds the texts"),
    "header.csv": (b"caption\n", "no texts in .*header.csv"),
    "nothing.json": (b" \n", "no texts in .*nothing.json"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_records_that_cannot_be_read_are_refused_in_words(name, tmp_path):
    data, message = REFUSED[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(MirlibError, match=message) as caught:
        open_texts(tmp_path / name)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_one_bad_record_does_not_end_all(lines):
    """The first of all, of which the fields were once taken; and texts that a model refuses know their line."""
    good = lines.read_text(encoding="utf-8").splitlines()
    bad = [
        '{"text": "no image"}',
        "{",
        '{"image": "x.png", "text": "\\udc80"}',
        '{"n": ' + "9" * 5000 + "}",
        "[" * 100_000,
    ]
    for suffix, text in {
        ".jsonl": "\n".join([*bad, *good]),
        ".json": "[" + ", ".join([bad[0], bad[2], '{"n": ' + "9" * 5000 + "}", "3", *good, "{"]),
        ".csv": "image,text\n"
        + "".join(f'{json.loads(line)["image"]},"{json.loads(line)["text"]}"\n' + "a,b,c\n" for line in good),
    }.items():
        path = lines.with_suffix(suffix)
        path.write_text(text, encoding="utf-8")
        said = []
        pairs = open_pairs(path, on_unreadable=said.append)
        assert list(zip(colours_of(pairs.images), pairs.texts, strict=True)) == EXPECTED, suffix
        assert len(said) == {".jsonl": 5, ".json": 5, ".csv": COUNT}[suffix]
        assert all(str(path) in sentence and len(sentence) < 400 for sentence in said)
        with pytest.raises(MirlibError, match=r"(line|record) [1-3]"):
            open_pairs(path)
    assert open_pairs(lines.with_suffix(".csv"), on_unreadable=said.append).texts[1].source.endswith("line 4")


def test_lines_and_arrays_longer_than_what_is_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("mirlib.records.STEP", 100)
    texts = [f"{number} " + "é" * (number % 300) for number in range(600)]
    (tmp_path / "a.json").write_text(json.dumps([{"text": text} for text in texts], ensure_ascii=False, indent=3))
    assert list(open_texts(tmp_path / "a.json")) == [text.strip() for text in texts]
    monkeypatch.setattr("mirlib.data.LONGEST_LINE", 2000)
    path = write_lines(tmp_path / "a.jsonl", [{"text": "x" * 5000}, {"text": "short"}])
    said = []
    assert list(open_texts(path, on_unreadable=said.append)) == ["short"]
    assert len(said) == 1 and "a.jsonl, line 1: the line has more than" in said[0]
    (tmp_path / "a.json").write_text('[{"text": "ok"}, {"text": "' + "x" * 9000 + '"}]')
    assert list(open_texts(tmp_path / "a.json", on_unreadable=said.append)) == ["ok"]
    assert "record 2: not JSON (it has more than" in said[1]
    (tmp_path / "a.json").write_text('{"text": "' + "x" * 5000 + '"}')
    with pytest.raises(MirlibError, match=r"a\.json, record 1, field 'text': the text has more than"):
        open_texts(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("http://example.org/a.png", "http://example.org/a.png is an address, and nothing is fetched"),
        ("file:///etc/hostname", "file:///etc/hostname is an address, and nothing is fetched"),
        ("s3://bucket/a.png", "is an address"),
        ("data:image/png;base64," + "A" * 9000, r"got the image itself in base64 \(data:image/png;base64,A{58}…\)$"),
        ("/9j/" + "A" * 9000, r"no such image: /9j/A{76}… \(the path is absolute"),
        ("a\x1b[31m\0.png", r"no such image: a\\x1b\[31m\\x00\.png"),
        ("\ud800.png", r"no such image: \\ud800\.png"),
        (["0.png", "1.png"], "expected the path of an image, got a list of 2"),
        ({"url": "x"}, "expected the path of an image, got an object with url"),
        ("", "expected the path of an image, got an empty str"),
    ],
)
def test_images_that_a_record_cannot_have(image, message, tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"image": image, "text": "t"}])
    with pytest.raises(MirlibError, match=rf"a\.jsonl, line 1, field 'image': .*{message}"):
        open_pairs(path).images[0]


def test_addresses_are_no_sources(tmp_path):
    for source in (
        "http://example.org/a.jsonl",
        "https://example.org/a.png",
        "s3://b/c.tar",
        "file:///etc/hostname",
        "gs://a/b",
    ):
        for read in (open_images, open_texts, open_pairs):
            with pytest.raises(MirlibError, match="is an address, and nothing is fetched"):
                read(source)
    with pytest.raises(MirlibError, match=r"image_root \(--image-root\) is for paths in files"):
        (tmp_path / "a.png").write_bytes(png(COLOURS[0]))
        open_images(tmp_path, image_root=tmp_path)
    (tmp_path / "a.txt").write_text("a text\n")
    for kind, read, source in (("image", open_images, tmp_path), ("text", open_texts, tmp_path / "a.txt")):
        with pytest.raises(MirlibError, match=rf"{kind}_field \(--{kind}-field\) is for records, tables and shards"):
            read(source, **{f"{kind}_field": "name"})


def test_pipes_are_no_sources(tmp_path):
    for name in ("a.jsonl", "a.json", "a.csv", "a.tar", "a.parquet"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(MirlibError, match="it is a pipe, a socket or a device"):
            open_pairs(tmp_path / name)


def test_transparent_pictures_and_white_ones_have_one_mir(tmp_path):
    """The background is laid under the picture by hand here; without it, the colours behind it would be measured."""
    model, processor = lvlm("llava")
    rng = np.random.default_rng(0)
    records = {"transparent": [], "white": [], "dropped": []}
    for number, (image, text) in enumerate(zip(sample_images(6, seed=2), sample_texts(6, seed=2), strict=True)):
        colours = np.asarray(image.resize((40, 40))).astype(float)
        alpha = rng.choice([0, 255], (40, 40, 1), p=[0.6, 0.4])
        stored = {
            "transparent": np.dstack([colours, alpha]), "white": np.where(alpha, colours, 255), "dropped": colours,
        }  # fmt: skip
        for kind, pixels in stored.items():
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{kind}{number}.png")
            records[kind].append({"image": f"{kind}{number}.png", "text": text[:60]})
    found = {}
    for kind, written in records.items():
        pairs = open_pairs(write_lines(tmp_path / f"{kind}.jsonl", written))
        found[kind] = score(model, processor, *pairs, num=6, paired=True, progress=False, confidence=None).value
    assert found["transparent"] == found["white"]
    assert abs(found["dropped"] - found["white"]) > 0.01


# ---------------------------------------------------------------------------------------------------------------------
# WebDataset shards


@pytest.mark.parametrize("text", ["txt", "json"])
def test_shards(text, tmp_path):
    for shard in range(3):
        write_tar(tmp_path / f"s-{shard:02}.tar", [m for n in (2 * shard, 2 * shard + 1) for m in sample(n, text)])
    for source in (tmp_path, f"{tmp_path}/s-{{00..02}}.tar"):
        pairs = open_pairs(source)
        assert colours_of(pairs.images) == COLOURS and list(pairs.texts) == CAPTIONS
        assert colours_of(open_images([source])) == COLOURS and list(open_texts(source)) == CAPTIONS
    one = open_images(tmp_path / "s-01.tar")
    assert colours_of(one) == COLOURS[2:4]
    assert colours_of(one[1:]) == COLOURS[3:4] and load_image(one[-1]).getpixel((0, 0)) == COLOURS[3]
    with pytest.raises(IndexError):
        one[2]
    assert one[0].filename == f"{tmp_path}/s-01.tar/002.png", "what an error message calls it"
    with pytest.raises(MirlibError, match="no such file: .*s-03.tar"):
        open_images(f"{tmp_path}/s-{{00..03}}.tar")
    with pytest.raises(MirlibError, match="runs backwards"):
        open_images(f"{tmp_path}/s-{{02..00}}.tar")


def test_nothing_is_read_before_it_is_asked_for(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", [m for n in range(COUNT) for m in sample(n)])
    pairs = open_pairs(path)
    read = []
    monkeypatch.setattr("mirlib.readers._Member.read", lambda member, *_: read.append(member) or png(COLOURS[0]))
    assert len(pairs.images) == len(pairs.texts) == COUNT and not read
    load_image(pairs.images[4])
    assert len(read) == 1


def test_endings_and_fields_of_ones_own(tmp_path):
    path = write_tar(
        tmp_path / "a.tar",
        [
            ("a/0.left.png", png(COLOURS[0])), ("a/0.right.png", png(COLOURS[1])),
            ("a/0.json", json.dumps({"short": "few", "long": "many words"}).encode()),
            ("b/0.left.png", png(COLOURS[2])), ("b/0.json", json.dumps({"short": "x", "long": "y z"}).encode()),
            ("._hidden", b""), ("readme", b"no ending"),
        ],
    )  # fmt: skip
    pairs = open_pairs(path, image_field="left.png", text_field="long")
    assert colours_of(pairs.images) == [COLOURS[0], COLOURS[2]] and list(pairs.texts) == ["many words", "y z"]
    assert colours_of(open_images(path, image_field="right.png")) == [COLOURS[1]]
    with pytest.raises(MirlibError, match=r"no key has a member \.jpg; there is .*left\.png"):
        open_images(path, image_field="jpg")
    with pytest.raises(MirlibError, match=r"a/0\.json: which field holds the texts\? There is short, long"):
        open_texts(path)[0]


def test_damaged_members_and_keys_are_named(tmp_path):
    whole = png(COLOURS[0])
    path = write_tar(
        tmp_path / "a.tar",
        [("0.png", b"not an image"), ("0.txt", b"a"), ("1.png", whole[:50]), ("1.txt", b"caf\xe9"), ("2.png", whole),
         ("3.txt", b"alone"), ("4.png", whole), ("4.txt", b"fine")],
    )  # fmt: skip
    images = open_images(path)
    with pytest.raises(MirlibError, match=r"cannot read the image .*a\.tar/0\.png: it is no picture of the formats "):
        images[0]
    with pytest.raises(MirlibError, match=r"cannot read the image .*a\.tar/1\.png: "):
        load_image(images[1])
    with pytest.raises(MirlibError, match=r"a\.tar/1\.txt: not UTF-8 text \(byte 3\)"):
        open_texts(path)[1]
    with pytest.raises(MirlibError, match=r"a\.tar/2: no text \(there is png\)"):
        open_pairs(path)
    said = []
    pairs = open_pairs(path, on_unreadable=said.append)
    assert len(pairs.images) == 3 and pairs.texts[2] == "fine"
    assert [sentence.split("a.tar/")[1] for sentence in said] == [
        "2: no text (there is png)",
        "3: no image (there is txt)",
    ]


def test_damaged_and_compressed_archives(tmp_path):
    path = write_tar(tmp_path / "cut.tar", [m for n in range(3) for m in sample(n)])
    data = path.read_bytes()
    path.write_bytes(data[: 512 * 9 + 30])  # within the third image
    with pytest.raises(MirlibError, match=r"cut\.tar: the archive is damaged .*keys stand before the damage"):
        open_images(path)
    said = []
    found = colours_of(open_images(path, on_unreadable=said.append))
    assert found == COLOURS[: len(found)] and len(found) == 2 and len(said) == 1
    (tmp_path / "no.tar").write_bytes(b"x" * 2000)
    with pytest.raises(MirlibError, match=r"no\.tar: the archive is damaged"):
        open_images(tmp_path / "no.tar")
    for name in ("a.tar.gz", "a.tgz", "a.TAR.xz"):
        with pytest.raises(MirlibError, match="compressed archive cannot be read key by key"):
            open_images(tmp_path / name)


def member(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_members_that_are_no_files_are_passed_over(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for info in (
            member("1.png", tarfile.SYMTYPE, "/etc/passwd"), member("2.png", tarfile.LNKTYPE, "0.png"),
            member("3.png", tarfile.FIFOTYPE), member("4.png", tarfile.CHRTYPE),
            member("5.png", tarfile.GNUTYPE_SPARSE),
        ):  # fmt: skip
            if info.type == tarfile.GNUTYPE_SPARSE:
                header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
                archive.fileobj.write(header)
                archive.offset += len(header)
            else:
                archive.addfile(info)
        for name in ("0.png", "../../up.png", "__MACOSX/0.png", ".trash/0.png", "sub/._0.png"):
            info = tarfile.TarInfo(name)
            info.size = len(png(COLOURS[1]))
            archive.addfile(info, io.BytesIO(png(COLOURS[1])))
    with pytest.warns(UserWarning, match=r"a\.tar: members passed over, which are links, pipes, devices or sparse: 5"):
        images = open_images(tmp_path / "a.tar")
    assert colours_of(images) == [COLOURS[1]] * 2 and not list(tmp_path.parent.glob("up.png"))


def test_keys_with_periods_and_names_that_stand_twice(tmp_path):
    path = write_tar(
        tmp_path / "a.tar",
        [(f"img.v{n}.{end}", data) for n in (1, 2) for end, data in (("png", png(COLOURS[n])), ("txt", b"t"))],
    )
    with pytest.raises(
        MirlibError, match=r"a\.tar/img: no text \(there is v1\.png, .*; a key ends at the first period of the"
    ):
        open_pairs(path)
    with pytest.raises(
        MirlibError, match=r"which member is the image\? There is v1\.png, v2\.png; .*names that hold periods"
    ):
        open_images(path)
    assert colours_of(open_images(path, image_field="v2.png")) == [COLOURS[2]]
    path = write_tar(tmp_path / "b.tar", [*sample(0), (sample(0)[0][0], png(COLOURS[3])), *sample(1)])
    with pytest.raises(MirlibError, match=r"b\.tar/000\.png: the archive has two members of this name"):
        open_pairs(path)
    said = []
    assert colours_of(open_pairs(path, on_unreadable=said.append).images) == COLOURS[:2] and len(said) == 1
    for name in ("s-{0..99999999999}.tar", "s-{000..999999}.tar"):
        with pytest.raises(MirlibError, match="is of more than 100000 shards"):
            open_images(name)


def test_damaged_headers_end_in_words(tmp_path):
    """Sizes below zero and beyond the file, and bytes changed at random, in both ways of writing long names."""
    for data in (b"\xff" * 12, b"\x80" + b"\x7f" * 11):
        stored = bytearray(write_tar(tmp_path / "a.tar", sample(0)).read_bytes())
        stored[124:136] = data
        stored[148:156] = b"%06o\0 " % (sum(stored[:148]) + sum(stored[156:512]) + 8 * 32)
        (tmp_path / "a.tar").write_bytes(stored)
        with pytest.raises(MirlibError, match=r"a\.tar: the archive is damaged"):
            open_images(tmp_path / "a.tar")
    generator, outcomes = random.Random(0), set()
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "whole.tar", "w", format=kind) as archive:
            for number in range(3):
                info = tarfile.TarInfo("x" * 120 + f"{number}.png")
                info.size = len(png(COLOURS[number]))
                archive.addfile(info, io.BytesIO(png(COLOURS[number])))
        for _ in range(80):
            stored = bytearray((tmp_path / "whole.tar").read_bytes())
            if generator.random() < 0.2:
                del stored[generator.randrange(len(stored)) :]
            for _ in range(generator.choice([1, 3, 20])):
                stored[generator.randrange(min(len(stored), 3000))] = generator.randrange(256)
            (tmp_path / "a.tar").write_bytes(stored)
            try:
                outcomes.add(len(colours_of(open_images(tmp_path / "a.tar"))))
            except MirlibError:
                outcomes.add("refused")
    assert "refused" in outcomes and 3 in outcomes


# ---------------------------------------------------------------------------------------------------------------------
# Hugging Face datasets: local tables with the columns of those on the hub

WORDS = {"question_tokens": ["what", "is", "it"], "image_classes": ["Sign"], "ocr_tokens": ["STOP"]}


def textvqa(folder):
    """Parquet files laid out and typed as those of lmms-lab/textvqa: two questions about each image."""
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed: pip install it")
    rows = [
        {
            "image_id": f"id{number // 2}",
            "question_id": 100 + number,
            "question": f"What is number {number}?",
            "image": {"bytes": png(COLOURS[number // 2]), "path": None},
            "image_width": 8,
            "image_height": 6,
            "flickr_original_url": "",
            "flickr_300k_url": "",
            "answers": ["yes"] * 10,
            "set_name": "val",
            **WORDS,
        }
        for number in range(2 * COUNT)
    ]
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    (folder / "data").mkdir(parents=True)
    table.select(range(8)).to_parquet(folder / "data" / "validation-00000-of-00002.parquet")
    table.select(range(8, 12)).to_parquet(folder / "data" / "validation-00001-of-00002.parquet")
    table.select(range(1)).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return folder


def cnn_dailymail(folder):
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed: pip install it")
    (folder / "3.0.0").mkdir(parents=True)
    rows = [{"article": text, "highlights": "short", "id": str(i)} for i, text in enumerate(CAPTIONS)]
    datasets.Dataset.from_list(rows).to_parquet(folder / "3.0.0" / "validation-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Folders that hold what the two repositories on the hub hold, and a cache that is not the user's."""
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed: pip install it")
    root = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
        datasets.disable_progress_bars()
        yield textvqa(root / "textvqa"), cnn_dailymail(root / "cnn_dailymail")
        datasets.enable_progress_bars()


def test_textvqa_gives_each_image_once(hub):
    images = open_images(f"hf:{hub[0]}:validation")
    assert colours_of(images) == COLOURS, "in the order of the rows, each image_id once"
    assert images[1].filename == f"{hub[0]}/data/validation-00000-of-00002.parquet, row 2, column 'image'"
    questions = open_texts(f"hf:{hub[0]}:validation", text_field="question")
    assert len(questions) == 2 * COUNT and questions[3] == "What is number 3?"
    pairs = open_pairs(f"hf:{hub[0]}:validation")
    assert len(pairs.images) == len(pairs.texts) == 2 * COUNT
    assert load_image(pairs.images[5]).getpixel((0, 0)) == COLOURS[2] and pairs.texts[5] == "What is number 5?"
    assert draw(images, 3, 0, "images") == draw(images, 5, 0, "images")[:3]


def test_cnn_dailymail_gives_the_articles(hub):
    assert list(open_texts(f"hf:{hub[1]}")) == CAPTIONS, "one split, so none need be named"
    with pytest.raises(MirlibError, match=r"there is no field 'body'; there is article, highlights, id"):
        open_texts(f"hf:{hub[1]}", text_field="body")


def test_hub_names_stand_for_the_repositories_and_splits_of_the_paper(stand_in_for_the_hub):
    for name in ("TextVQA", "lmms-lab/textvqa", "facebook/textvqa"):
        assert colours_of(open_images([f"hf:{name}"])) == COLOURS
    for name in ("cnn_dailymail", "CNN/DailyMail", "abisee/cnn_dailymail", "abisee/cnn_dailymail@3.0.0:validation"):
        assert list(open_texts(f"hf:{name}")) == CAPTIONS
    assert set(stand_in_for_the_hub) == {("lmms-lab/textvqa", None), ("abisee/cnn_dailymail", "3.0.0")}
    assert len(open_texts("hf:textvqa:train", text_field="question")) == 1, "another split, if it is named"
    with pytest.raises(MirlibError, match=r"hf:textvqa:test: there is no split 'test'\? There is .*validation"):
        open_images("hf:textvqa:test")


def test_only_the_files_of_the_split_are_touched(hub):
    """The files of the other splits would be gigabytes from the hub: here they are damaged, and nobody notices."""
    train = next(hub[0].rglob("train-*.parquet"))
    whole = train.read_bytes()
    train.write_bytes(b"damaged")
    try:
        assert len(open_images(f"hf:{hub[0]}:validation")) == COUNT
    finally:
        train.write_bytes(whole)


def test_parquet_files_and_stored_datasets(hub, tmp_path):
    import datasets

    files = sorted((hub[0] / "data").glob("validation*"))
    assert colours_of(open_images(files[0])) == COLOURS[:4]
    assert list(open_texts(hub[1] / "3.0.0")) == CAPTIONS
    table = datasets.Dataset.from_dict({"caption": CAPTIONS[:2], "image": [str(tmp_path / "0.png"), ""]})
    table.save_to_disk(tmp_path / "stored")
    (tmp_path / "0.png").write_bytes(png(COLOURS[0]))
    pairs = open_pairs(f"hf:{tmp_path / 'stored'}")
    assert load_image(pairs.images[0]).getpixel((0, 0)) == COLOURS[0] and list(pairs.texts) == CAPTIONS[:2]
    with pytest.raises(MirlibError, match="row 1, column 'image': expected the path of an image, got an empty str"):
        pairs.images[1]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(MirlibError, match=r"cannot read .*bad\.parquet: "):
        open_texts(tmp_path / "bad.parquet")
    with pytest.raises(MirlibError, match=r"no such file: .*none\.parquet"):
        open_texts(tmp_path / "none.parquet")


def write_parquet(path, columns, **options):
    arrow = pytest.importorskip("pyarrow", reason="the package pyarrow is not installed: pip install it")
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.table(columns), path, **options)
    return path


def parquet_forms():
    import pyarrow as pa

    pictures, paths = [png(colour) for colour in COLOURS], [f"{number}.png" for number in range(COUNT)]
    structs = [{"bytes": picture, "path": None} for picture in pictures]
    return {
        "bytes": {"image": pictures, "caption": CAPTIONS},
        "large": {"image": pa.array(pictures, pa.large_binary()), "caption": pa.array(CAPTIONS, pa.large_string())},
        "views": {"image": pa.array(pictures, pa.binary_view()), "caption": pa.array(CAPTIONS, pa.string_view())},
        "structs": {"photo": structs, "caption": CAPTIONS},
        "paths in structs": {"image": [{"bytes": None, "path": path} for path in paths], "text": CAPTIONS},
        "lists": {"pages": [[each] for each in structs], "caption": [[text, "another"] for text in CAPTIONS]},
        "paths": {"image_path": paths, "caption": CAPTIONS},
        "dictionaries": {
            "image": pa.array(paths).dictionary_encode(), "caption": pa.array(CAPTIONS).dictionary_encode(),
        },
        "conversations": {
            "image": structs, "conversations": [[turn("human", "<image>?"), turn("gpt", text)] for text in CAPTIONS],
        },
    }  # fmt: skip


def test_every_form_of_parquet_holds_the_same_pairs(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow", reason="the package pyarrow is not installed: pip install it")
    (tmp_path / "images").mkdir()
    for number, colour in enumerate(COLOURS):
        (tmp_path / "images" / f"{number}.png").write_bytes(png(colour))
    monkeypatch.setattr("mirlib.tables.ROWS", 2)
    for name, columns in parquet_forms().items():
        pairs = open_pairs(write_parquet(tmp_path / f"{name}.parquet", columns, row_group_size=4))
        assert list(zip(colours_of(pairs.images), pairs.texts, strict=True)) == EXPECTED, name
        assert [pairs.texts[row] for row in (5, 0, 3, 1, 4)] == [CAPTIONS[row] for row in (5, 0, 3, 1, 4)], name
        assert pairs.texts[4].source.startswith(f"{tmp_path}/{name}.parquet, row 4, column ")
    elsewhere = write_parquet(tmp_path / "data" / "a.parquet", parquet_forms()["paths"])
    with pytest.raises(MirlibError, match=r"a\.parquet, row 2, column 'image_path': no such image: 2\.png \(looked in"):
        open_images(elsewhere)[2]
    assert colours_of(open_images(elsewhere, image_root=tmp_path / "images")) == COLOURS


def test_rows_that_hold_nothing_are_named(tmp_path):
    pictures = [
        {"bytes": png(COLOURS[0]), "path": None},
        {"bytes": None, "path": None},
        None,
        {"bytes": b"x", "path": None},
    ]
    path = write_parquet(tmp_path / "a.parquet", {"image": pictures, "text": ["a", None, "", "d"], "n": [1, 2, 3, 4]})
    images, texts = open_images(path), open_texts(path)
    for row in (1, 2):
        with pytest.raises(
            MirlibError, match=rf"a\.parquet, row {row}, column 'image': expected the path of an image, got None"
        ):
            images[row]
    with pytest.raises(
        MirlibError,
        match=r"cannot read the image .*a\.parquet, row 3, column 'image': it is no picture of the formats ",
    ):
        images[3]
    with pytest.raises(MirlibError, match=r"row 1, column 'text': expected a text, got NoneType"):
        texts[1]
    with pytest.raises(MirlibError, match=r"row 2, column 'text': the text is empty"):
        texts[2]
    with pytest.raises(MirlibError, match=r"row 0, column 'n': expected a text, got int"):
        open_texts(path, text_field="n")[0]
    path = write_parquet(tmp_path / "url.parquet", {"image": ["http://example.org/a.png"]})
    with pytest.raises(MirlibError, match="row 0, column 'image': http://example.org/a.png is an address"):
        open_images(path)[0]
    write_parquet(tmp_path / "some" / "a.parquet", {"text": ["a"]})
    write_parquet(tmp_path / "some" / "b.parquet", {"other": ["a"]})
    with pytest.raises(MirlibError, match=r"b\.parquet: there is no column 'text'; there is other"):
        open_texts(tmp_path / "some")
    (tmp_path / "some" / "b.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(MirlibError, match=r"cannot read .*b\.parquet: "):
        open_texts(tmp_path / "some")
    said = []
    assert list(open_texts(tmp_path / "some", on_unreadable=said.append)) == ["a"] and len(said) == 1
    (tmp_path / "some" / "a.parquet").unlink()
    with pytest.raises(MirlibError, match=r"cannot read .*b\.parquet: "):
        open_texts(tmp_path / "some", on_unreadable=said.append)


def test_rows_without_an_id_stand_for_themselves(tmp_path):
    ids = {
        "numbers": [None, 1, None, 1, 2, None],
        "lists": [None, [1], None, [1], [2], None],
        "words": [None, "a", None, "a", "", None],
    }
    for name, column in ids.items():
        path = write_parquet(tmp_path / f"{name}.parquet", {"image": [png(c) for c in COLOURS], "image_id": column})
        assert colours_of(open_images(path)) == [COLOURS[row] for row in (0, 1, 2, 4, 5)], name


def test_folders_of_the_hub(tmp_path):
    """A snapshot of a dataset: pictures beside its tables are no data, and files that its README names stay unread."""
    folder = tmp_path / "snapshot"
    rows = {"image": [png(colour) for colour in COLOURS], "text": CAPTIONS}
    write_parquet(folder / "data" / "train-00000-of-00001.parquet", rows)
    (folder / "assets").mkdir()
    (folder / "assets" / "teaser.png").write_bytes(png((0, 0, 0)))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: http://example.org/x.parquet\n---\n"
    )
    with pytest.warns(UserWarning, match="took the .parquet files; images passed over: 1"):
        assert colours_of(open_images(folder)) == COLOURS
    for source in (f"hf:{folder}", f"hf:{folder}:train", f"hf:{folder}@data:train"):
        assert list(open_texts(source)) == CAPTIONS
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", {"image": rows["image"][:1], "text": ["test"]})
    assert list(open_texts(f"hf:{folder}:test")) == ["test"] and list(open_texts(f"hf:{folder}:train")) == CAPTIONS
    for source in (folder, f"hf:{folder}"):
        with pytest.raises(MirlibError, match=r"which split\? There is test, train; write hf:.*:SPLIT"):
            open_texts(source)
    write_parquet(folder / "more" / "train-00000-of-00001.parquet", {"text": ["more"]})
    with pytest.raises(MirlibError, match=r"which configuration\? There is data, more; write hf:.*@CONFIG:SPLIT"):
        open_texts(f"hf:{folder}")
    assert list(open_texts(f"hf:{folder}@more")) == ["more"]
    for path in folder.rglob("*.parquet"):
        path.unlink()
    with pytest.raises(
        MirlibError, match=r"the folder holds no \.parquet files, .*without hf: \(--images .*snapshot\)"
    ):
        open_images(f"hf:{folder}")
    photos = tmp_path / "photos"
    write_parquet(photos / "statistics.parquet", {"x": [1]})
    (photos / "0.png").write_bytes(png(COLOURS[0]))
    with pytest.warns(UserWarning, match=r"1 images; passed over 1 of other kinds \(\.parquet\)"):
        assert colours_of(open_images(photos)) == COLOURS[:1]


def test_datasets_saved_to_disk_are_read_as_they_are(hub, tmp_path):
    import datasets

    rows = {"image": [{"bytes": png(colour), "path": None} for colour in COLOURS], "text": CAPTIONS}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    table.select([4, 1]).save_to_disk(tmp_path / "part")
    pairs = open_pairs(f"hf:{tmp_path / 'part'}")
    assert colours_of(pairs.images) == [COLOURS[4], COLOURS[1]] and list(pairs.texts) == [CAPTIONS[4], CAPTIONS[1]]
    datasets.DatasetDict({"train": table, "test": table.select([2])}).save_to_disk(tmp_path / "all")
    assert list(open_texts(f"hf:{tmp_path / 'all'}:test")) == [CAPTIONS[2]]
    with pytest.raises(MirlibError, match=r"which split\? There is train, test"):
        open_texts(f"hf:{tmp_path / 'all'}")
    (tmp_path / "part" / "state.json").write_text("{")
    with pytest.raises(MirlibError, match=r"part: cannot load the dataset \("):
        open_pairs(f"hf:{tmp_path / 'part'}")


def test_damaged_parquet_is_refused_in_words(tmp_path):
    whole = write_parquet(tmp_path / "a.parquet", parquet_forms()["structs"], row_group_size=3).read_bytes()
    generator, outcomes = random.Random(0), set()
    for _ in range(100):
        data = bytearray(whole)
        if generator.random() < 0.2:
            del data[generator.randrange(len(data)) :]
        for _ in range(generator.choice([1, 3, 20]) if data else 0):
            data[generator.randrange(len(data))] = generator.randrange(256)
        (tmp_path / "a.parquet").write_bytes(data)
        try:
            pairs = open_pairs(tmp_path / "a.parquet")
            outcomes.add(len(list(pairs.texts)) + len(colours_of(pairs.images)))
        except MirlibError:
            outcomes.add("refused")
    assert "refused" in outcomes and 2 * COUNT in outcomes


def test_datasets_that_are_not_there(hub, tmp_path, monkeypatch):
    with pytest.raises(MirlibError, match=r"which split\? There is .*; write hf:.*:SPLIT"):
        open_images(f"hf:{hub[0]}")
    with pytest.raises(MirlibError, match=r"hf:/no/such/folder: it is no folder, and no name of a dataset"):
        open_images("hf:/no/such/folder")
    with pytest.raises(MirlibError, match="hf:: expected hf:NAME"):
        open_images("hf:")
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        MirlibError, match=r"package datasets, which is not installed: pip install 'mirlib\[datasets\]'"
    ):
        open_images("hf:TextVQA")


# ---------------------------------------------------------------------------------------------------------------------
# Several sources, and the command


def test_sources_one_after_the_other(lines, tmp_path):
    shard = write_tar(tmp_path / "a.tar", sample(5))
    images = open_images([lines.parent / "pictures" / "1.png", shard, lines])
    assert colours_of(images) == [COLOURS[1], COLOURS[5], *COLOURS]
    assert colours_of(open_images(lines.parent / "pictures")) == COLOURS


def test_the_command_measures_pairs_and_shards(lines, tmp_path, capsys):
    with lines.open("a") as file:
        file.write('{"image": "pictures/gone.png", "text": "lost"}\n')
    arguments = ["score", "-n", COUNT, "--no-progress", "--json", "-"]
    found = mir(capsys, *arguments, "--pairs", lines, "--skip-unreadable", "--image-root", lines.parent)
    assert found.code == 0, found.err
    paired = json.loads(found.out)
    assert paired["settings"]["paired"] is True and paired["settings"]["samples"] == COUNT
    assert paired["settings"]["images"] == [str(lines)] and paired["settings"]["texts"] == str(lines)
    assert paired["settings"]["image_root"] == str(lines.parent)
    assert (
        f"mir: skipped: {lines}, line 7, field 'image': no such image: pictures/gone.png (looked" in found.err
        and "mir: skipped 1 in all" in found.err
    )
    shard = write_tar(tmp_path / "a.tar", [m for n in range(COUNT) for m in sample(n)])
    again = json.loads(mir(capsys, *arguments, "--pairs", shard, "--seed", 1).out)
    assert again["mir"] == pytest.approx(paired["mir"], rel=1e-5), "all pairs, in another order"
    apart = json.loads(mir(capsys, *arguments, "--images", shard, "--texts", lines, "--skip-unreadable").out)
    assert apart["settings"]["paired"] is False and apart["mir"] == pytest.approx(paired["mir"], abs=0.2)
    assert apart["mir"] != paired["mir"]


def test_the_command_refuses_sources_that_do_not_fit(lines, capsys):
    assert "no such image: " in refused(
        capsys, "score", "-n", 1, "--pairs", write_lines(lines, ['{"image":"x","text":"y"}'])
    )
    assert "--pairs brings its own" in refused(capsys, "score", "--pairs", lines, "--texts", lines)
    assert "--image-root means nothing without --images or --pairs" in refused(capsys, "score", "--image-root", "x")
    assert "--image-field means nothing without --images or --pairs" in refused(capsys, "score", "--image-field", "x")
    assert "which field holds the texts" in refused(capsys, "score", "--texts", write_lines(lines, ['{"image":"x"}']))


# ---------------------------------------------------------------------------------------------------------------------
# Columns, quotes and texts that are not what they seem


def test_a_usual_name_wins_over_a_column_that_holds_bytes(tmp_path):
    (tmp_path / "a.png").write_bytes(png(COLOURS[1]))
    masks = {"mask": [png(COLOURS[2])], "text": ["a cat"]}
    usual = write_parquet(tmp_path / "usual.parquet", {"image": ["a.png"], **masks})
    assert colours_of(open_images(usual)) == colours_of(open_pairs(usual).images) == [COLOURS[1]]
    assert colours_of(open_images(usual, image_field="mask")) == [COLOURS[2]]
    assert colours_of(open_images(write_parquet(tmp_path / "one.parquet", masks))) == [COLOURS[2]]
    two = write_parquet(tmp_path / "two.parquet", {"photo": [{"bytes": png(COLOURS[1]), "path": None}], **masks})
    with pytest.raises(MirlibError, match="which field holds the images. There is photo, mask, text;"):
        open_images(two)


@pytest.mark.parametrize("images", [["a.png", None], [["a.png"], []]])
def test_rows_of_text_alone_are_passed_over_and_counted(images, tmp_path):
    (tmp_path / "a.png").write_bytes(png(COLOURS[1]))
    turns = [[{"from": "gpt", "value": text}] for text in CAPTIONS[:2]]
    arrow = pytest.importorskip("pyarrow")
    kind = (arrow.large_list if images[1] is None else arrow.list_)(arrow.array(turns).type.value_type)
    path = write_parquet(tmp_path / "turns.parquet", {"images": images, "conversations": arrow.array(turns, kind)})
    with pytest.warns(UserWarning, match="turns.parquet: 1 pairs; passed over 1 of text alone"):
        pairs = open_pairs(path)
    assert colours_of(pairs.images) == [COLOURS[1]] and list(pairs.texts) == [CAPTIONS[0]]
    with pytest.warns(UserWarning, match="1 images; passed over 1 of text alone"):
        assert len(open_images(path)) == 1
    assert list(open_texts(path)) == CAPTIONS[:2]


def test_an_id_that_is_not_a_number_is_none(tmp_path):
    ids = [float("nan"), float("nan"), 3.0, 3.0]
    path = write_parquet(tmp_path / "a.parquet", {"image": [png(colour) for colour in COLOURS[:4]], "image_id": ids})
    assert colours_of(open_images(path)) == COLOURS[:3]


def test_two_columns_of_one_name_in_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = arrow.Table.from_arrays([arrow.array(["a"]), arrow.array(["b"])], names=["text", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(MirlibError, match="two columns are called 'text'; rename one"):
        open_texts(tmp_path / "a.parquet")


def test_texts_stored_as_bytes(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"text": ["été".encode(), "été".encode("latin-1")]})
    texts = open_texts(path)
    assert texts[0] == "été"
    with pytest.raises(MirlibError, match="row 1, column 'text': not UTF-8 text"):
        texts[1]


def test_endings_are_compared_without_their_case(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("a.PNG", png(COLOURS[1])), ("a.Caption", b"a cat"), ("a.jpg", b"none")])
    pairs = open_pairs(path, image_field="PNG", text_field="Caption")
    assert colours_of(pairs.images) == [COLOURS[1]] and list(pairs.texts) == ["a cat"]


def test_shards_that_are_missing_or_compressed(tmp_path):
    for number in range(2):
        write_tar(tmp_path / f"s-{number}.tar", sample(number))
    said = []
    images = open_images(tmp_path / "s-{0..2}.tar", on_unreadable=said.append)
    assert colours_of(images) == COLOURS[:2] and said == [f"no such file: {tmp_path / 's-2.tar'}"]
    with pytest.raises(MirlibError, match="no such file: .*s-2.tar"):
        open_images(tmp_path / "s-{0..2}.tar")
    (tmp_path / "s-2.tar").write_bytes(gzip.compress((tmp_path / "s-0.tar").read_bytes()))
    with pytest.raises(MirlibError, match="s-2.tar: the archive is compressed; unpack it to a .tar"):
        open_images(tmp_path / "s-{0..2}.tar")


def test_a_member_that_is_a_conversation(tmp_path):
    turns = json.dumps([{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a cat"}]).encode()
    assert list(open_texts(write_tar(tmp_path / "a.tar", [("a.png", png(COLOURS[0])), ("a.json", turns)]))) == ["a cat"]


def test_paths_of_windows_and_absolute_ones(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(png(COLOURS[1]))
    path = write_lines(
        tmp_path / "a.jsonl", [{"image": image} for image in ("pictures\\a.png", "/gone.png", "C:\\a.png")]
    )
    images = open_images(path, image_root=tmp_path)
    assert load_image(images[0]).getpixel((0, 0)) == COLOURS[1]
    for image in images[1:2], images[2:]:
        with pytest.raises(MirlibError, match="the path is absolute; make it relative"):
            image[0]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("suffix", ["txt", "csv", "jsonl"])
def test_utf_16_is_called_so(encoding, suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes("\ufefftext\na cat\n".encode(encoding))
    with pytest.raises(MirlibError, match="line 1: not UTF-8 text: it is UTF-16; save it as UTF-8"):
        list(open_texts(path))


def test_lines_of_any_white_space_are_blank(tmp_path):
    path = write_lines(tmp_path / "a.txt", ["a cat", "\u00a0", " \u2003\u3000", "a dog"])
    assert list(open_texts(path)) == ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ('image,text\na.png,"the cat\nb.png,the dog\nc.png,the ""mouse"\n', "one of them seems to be 'b.png,the dog"),
        ('text;image\n"the cat;a.png\nthe dog;b.png\nthe mouse";c.png\n', "one of them seems to be 'the dog;b.png"),
        ('a,text\nb c,"the cat\nd e,the dog\nf g,the mouse"\n', "one of them seems to be 'd e,the dog"),
        ('image,text\na.png,"the cat\nb.png,"the dog"\n', "expected after"),
        ('text\n"the cat\n' + "the dog\n" * 1010, "it is not closed within 1000 lines"),
    ],
)
def test_a_quote_that_is_not_closed_swallows_no_rows(table, reason, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(table)
    message = f"line 2: not a row of the table: a quote opens here.*{reason}"
    with pytest.raises(MirlibError, match=message):
        open_texts(path)
    path.write_text(table + "e.png,a bird\n".replace(",", ";" if ";" in table else ",", "image" in table))
    said = []
    texts = list(open_texts(path, on_unreadable=said.append))
    assert re.search(message, said[0]) and not any("\n" in text for text in texts)


def test_long_fields_of_tables(tmp_path):
    page = "\n".join(f"line {i} of a page" for i in range(60))
    (tmp_path / "a.csv").write_text(f'image,text\na.png,"{page}"\nb.png,two\n')
    assert list(open_texts(tmp_path / "a.csv")) == [page, "two"]
    (tmp_path / "a.csv").write_text('id,text\n17,"Dear Ann,\nYours,Bob"\n18,hello\n')
    said = []
    assert list(open_texts(tmp_path / "a.csv", on_unreadable=said.append)) == ["hello"] and len(said) == 1


def test_quotes_of_tables(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('image\ttext\na.png\t"the cat\nb.png\t"the" dog\nc.png\tthe mouse"\nd.png\t"a ""rat"""\n')
    assert list(open_texts(path)) == ['"the cat', '"the" dog', 'the mouse"', 'a "rat"']
    path = tmp_path / "a.csv"
    path.write_text('image,text\na.png,"A cat,\n\nred, blue,\nthe end"\nb.png,"one, two\nthree"\n')
    assert list(open_texts(path)) == ["A cat,\n\nred, blue,\nthe end", "one, two\nthree"]


def test_two_columns_of_one_name(tmp_path):
    (tmp_path / "a.csv").write_text("image,text, text\na.png,the cat,the dog\n")
    with pytest.raises(MirlibError, match="line 1, the header: two columns are called 'text'; rename one"):
        open_texts(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,caption\na.png,the cat\n", r"'image,caption', is the header of a table.*name the file a\.csv"),
        ("image\tcaption\na.png\tthe cat\n", r"is the header of a table.*name the file a\.tsv"),
        ("\ufeffid; Text\n1; the cat\n", r"'id; Text', is the header of a table.*name the file a\.csv"),
        ("image_name| n| caption\na.png| 0| the cat\n", "with commas between the fields"),
        ('{"text": "the cat"},\n{"text": "the dog"},\n', r"its lines are JSON.*name it a\.jsonl"),
        ('"the cat"\n"the dog"\n', "its lines are JSON"),
        ('[\n["the cat"],\n["the dog"]\n]\n', "its lines are JSON"),
        ('["a.png", "the cat"]\n["b.png", "the dog"]\n', "its lines are JSON"),
        ('# captions\n{"text": "the cat"}\n{"text": "the dog"}\n', "its lines are JSON"),
        ("{'text': 'the cat'}\n{'text': 'the dog'}\n", "its lines are JSON"),
        ("a.jpg#0\tThe cat .\nb.jpg#0\tThe dog .\n", "begin with the names of pictures.*name it .tsv"),
        ("a b.PNG,The cat\nc.png,The dog, asleep\n", "begin with the names of pictures"),
        ("Caption\nThe cat sat.\nThe dog\n", "its first line, 'Caption', is a header"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a"])
def test_records_are_no_plain_texts(text, message, name, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(MirlibError, match=message):
        open_texts(tmp_path / name)


@pytest.mark.parametrize(
    "text",
    [
        "Text, image\nThe cat sat on a mat.",
        "text\nimage",
        "See a.png, please.\nThe file is b.jpg, and so on.\nNo.\nNone.\nNothing",
        '"Hello," he said.\n"Yes."',
        "image,caption",
        "# Title\n12\n{x}",
        '"Yes."',
    ],
)
def test_prose_stays_plain_text(text, tmp_path):
    (tmp_path / "a.txt").write_text(text)
    assert list(open_texts(tmp_path / "a.txt")) == text.split("\n")


@pytest.mark.parametrize("ending", ["srt", "vtt", "html", "xml", "yaml", "py"])
def test_files_that_hold_more_than_texts(ending, tmp_path):
    (tmp_path / f"a.{ending}").write_text("1\n00:01 --> 00:02\nHello.\n")
    with pytest.raises(MirlibError, match="a file of this kind holds more than texts"):
        open_texts(tmp_path / f"a.{ending}")


def test_arrays_in_lines_are_left_out(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [["a.png", "the cat"], {"text": "the dog"}, ["the mouse"]])
    with pytest.raises(MirlibError, match="line 1: expected a JSON object, got list"):
        open_texts(path)
    said = []
    assert list(open_texts(path, on_unreadable=said.append)) == ["the dog"]
    assert [sentence.partition(", ")[2] for sentence in said] == [
        f"line {line}: expected a JSON object, got list" for line in (1, 3)
    ]


def test_columns_in_one_object(tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(png(COLOURS[number]))
    (tmp_path / "a.json").write_text(json.dumps({"image": ["0.png", "1.png"], "text": CAPTIONS[:2], "id": [7, 8]}))
    pairs = open_pairs(tmp_path / "a.json")
    assert colours_of(pairs.images) == COLOURS[:2] and list(pairs.texts) == CAPTIONS[:2]
    (tmp_path / "a.txt").write_text(json.dumps({"text": CAPTIONS}))
    assert list(open_texts(tmp_path / "a.txt")) == CAPTIONS
