"""What every package uses: arguments, arrays, structures of parameters, files, reprs. It imports no other package."""
