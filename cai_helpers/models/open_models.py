"""Models that anyone can load, to name where one is gated."""

# Instruct models that anyone can load without a token and that fit a T4 (docs/MODELS.md): the choices of the notebooks' form.
OPEN_MODELS = (
    "Qwen/Qwen3-1.7B",
    "Qwen/Qwen3-0.6B",
    "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "Qwen/Qwen2.5-1.5B-Instruct",
)
OPEN_CHOICE = f"As base model (models.base, --model) these need neither licence nor token: {', '.join(OPEN_MODELS)}."
