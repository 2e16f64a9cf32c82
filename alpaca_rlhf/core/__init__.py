"""The ground floor: records, files, the run folder, processes, prompt text. No torch."""
