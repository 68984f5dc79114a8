"""What every package uses: errors, result files, terminal output, downloads, the resources of the machine."""
