"""What every room stands on: records, files, the run folder, processes, prompt text. No torch."""
