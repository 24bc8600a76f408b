"""Cut-outs of one colour a word, in files as `mirlab.model.real_parts.cut_out` leaves them, but with a clear rim."""

from PIL import Image, ImageDraw

COLOURS = {"bird": (255, 0, 0), "fish": (0, 255, 0), "tool": (0, 0, 255)}
NAMES = ("ash", "birch", "cedar", "elm", "fir", "hazel", "larch", "maple", "oak", "pine", "rowan", "willow")


def made(folder, count=8):
    """A folder with a folder for each word."""
    for word, colour in COLOURS.items():
        (folder / word).mkdir(parents=True)
        for i, name in enumerate(NAMES[:count]):
            picture = Image.new("RGBA", (60, 40 + 4 * i))
            ImageDraw.Draw(picture).ellipse((6, 6, 53, 33 + 4 * i), fill=colour)
            picture.save(folder / word / f"{name}.png")
    return folder
