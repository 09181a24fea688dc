"""Constitutional AI's Stage 3 on hardware anyone has. Importing this does nothing; stages load what they need."""

__version__ = "0.1.0"
