"""A test of the doctor on scripted runs: runs with a known problem (`cases`) and healthy runs (`healthy`)."""
