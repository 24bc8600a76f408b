"""Ways to close the modality gap: each attaches to a Hugging Face LVLM, is trained with it, and comes off again."""
