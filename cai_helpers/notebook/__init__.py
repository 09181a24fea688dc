"""What only notebooks need: Colab's token, Drive and downloads, and showing things."""
