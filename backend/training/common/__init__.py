"""What trainings share: settings, the loop, the run folder, losses, several processes."""
