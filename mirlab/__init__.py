"""The laboratory: a miniature LLaVA, trained from nothing on a CPU, and the experiments made with it."""
