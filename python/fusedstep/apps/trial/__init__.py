"""The trial of the doctor: scripted runs whose state is known (`cases`, `healthy`), and what it says of them."""
