"""The world that the miniature sees and reads: scenes, their pictures, and the language about them."""

from mirlab.world.scenes import (
    CAPTION_DETAILS,
    CAPTION_SLOTS,
    CELLS,
    COLOURS,
    DIGIT_SHARE,
    DIGITS,
    FORMS,
    IMAGE_SIZE,
    NUMBERS,
    QUESTION_KINDS,
    RELATIONS,
    SHAPES,
    SIZES,
    WORDS,
    Question,
    Scene,
    Thing,
    ask,
    caption,
    edit_scene,
    family_of,
    parse_caption,
    plural,
    render,
    render_batch,
    sample_question,
    sample_scene,
    to_image,
)

__all__ = ["CAPTION_DETAILS", "CAPTION_SLOTS", "CELLS", "COLOURS", "DIGITS", "DIGIT_SHARE", "FORMS", "IMAGE_SIZE"]
__all__ += ["NUMBERS", "QUESTION_KINDS", "Question", "RELATIONS", "SHAPES", "SIZES", "Scene", "Thing", "WORDS", "ask"]
__all__ += ["caption", "edit_scene", "family_of", "parse_caption", "plural", "render", "render_batch"]
__all__ += ["sample_question", "sample_scene", "to_image"]
